"""charjax: character-level LSTM language models in JAX and Flax.

Public names are imported on first use (PEP 562), so `import charjax` does not import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from charjax._version import __version__ as __version__

if TYPE_CHECKING:
    from charjax import export as export, interop as interop, ops as ops
    from charjax.analysis.activations import activations as activations, unit_activations as unit_activations
    from charjax.analysis.correlations import unit_correlations as unit_correlations
    from charjax.analysis.dynamic_evaluation import (
        DynamicPiece as DynamicPiece,
        DynamicScore as DynamicScore,
        dynamic_score as dynamic_score,
        dynamic_score_pieces as dynamic_score_pieces,
    )
    from charjax.analysis.score import ScoredPiece as ScoredPiece, score as score, score_pieces as score_pieces
    from charjax.array_types import LSTMCarry as LSTMCarry, LSTMWeights as LSTMWeights
    from charjax.config import (
        DynamicConfig as DynamicConfig,
        ModelConfig as ModelConfig,
        SampleConfig as SampleConfig,
        TrainConfig as TrainConfig,
    )
    from charjax.data.batching import make_streams as make_streams
    from charjax.data.corpus import Corpus as Corpus, read_pieces as read_pieces
    from charjax.data.sample_texts import data_path as data_path
    from charjax.data.vocab import Vocab as Vocab
    from charjax.distributed.mesh import make_mesh as make_mesh, put_streams as put_streams
    from charjax.distributed.processes import join_processes as join_processes
    from charjax.errors import Interrupted as Interrupted, UserError as UserError
    from charjax.generation.beam_search import beam_search as beam_search, beam_search_text as beam_search_text
    from charjax.generation.generate import generate as generate, generate_text as generate_text
    from charjax.metrics import Evaluation as Evaluation
    from charjax.model import CharLSTM as CharLSTM, init_carry as init_carry, init_params as init_params
    from charjax.ops.lstm.reference import LSTMCell as LSTMCell
    from charjax.progress.history import History as History
    from charjax.progress.notebook import NotebookReporter as NotebookReporter
    from charjax.progress.plain import PlainReporter as PlainReporter
    from charjax.progress.reporter import Reporter as Reporter
    from charjax.progress.terminal import TerminalReporter as TerminalReporter
    from charjax.progress.tracker import TensorBoard as TensorBoard, Tracker as Tracker
    from charjax.runs.checkpoint import restore_checkpoint as restore_checkpoint
    from charjax.runs.checkpoint_store import save_checkpoint as save_checkpoint
    from charjax.runs.imported import import_model as import_model
    from charjax.runs.model_file import load_model as load_model, save_model as save_model
    from charjax.train_state import TrainState as TrainState, init_train_state as init_train_state
    from charjax.training.evaluate import evaluate as evaluate, make_eval_step as make_eval_step
    from charjax.training.fit import fit as fit
    from charjax.training.optimizer import make_optimizer as make_optimizer
    from charjax.training.presets import preset as preset
    from charjax.training.step import make_train_step as make_train_step
    from charjax.training.sweep import sweep as sweep

__all__ = [
    "CharLSTM", "Corpus", "DynamicConfig", "DynamicPiece", "DynamicScore", "Evaluation", "History", "Interrupted",
    "LSTMCarry", "LSTMCell", "LSTMWeights", "ModelConfig", "NotebookReporter", "PlainReporter", "Reporter",
    "SampleConfig", "ScoredPiece", "TensorBoard", "TerminalReporter", "Tracker", "TrainConfig", "TrainState",
    "UserError", "Vocab", "activations", "beam_search", "beam_search_text", "data_path", "dynamic_score",
    "dynamic_score_pieces", "evaluate", "export", "fit", "generate", "generate_text", "import_model", "init_carry",
    "init_params", "init_train_state", "interop", "join_processes", "load_model", "make_eval_step", "make_mesh",
    "make_optimizer", "make_streams", "make_train_step", "ops", "preset", "put_streams", "read_pieces",
    "restore_checkpoint", "save_checkpoint", "save_model", "score", "score_pieces", "sweep", "unit_activations",
    "unit_correlations",
]  # fmt: skip
_NAMES_OF = {
    "analysis.activations": ("activations", "unit_activations"),
    "analysis.correlations": ("unit_correlations",),
    "analysis.dynamic_evaluation": ("DynamicPiece", "DynamicScore", "dynamic_score", "dynamic_score_pieces"),
    "analysis.score": ("ScoredPiece", "score", "score_pieces"),
    "array_types": ("LSTMCarry", "LSTMWeights"),
    "config": ("DynamicConfig", "ModelConfig", "SampleConfig", "TrainConfig"),
    "data.batching": ("make_streams",),
    "data.corpus": ("Corpus", "read_pieces"),
    "data.sample_texts": ("data_path",),
    "data.vocab": ("Vocab",),
    "distributed.mesh": ("make_mesh", "put_streams"),
    "distributed.processes": ("join_processes",),
    "errors": ("Interrupted", "UserError"),
    "generation.beam_search": ("beam_search", "beam_search_text"),
    "generation.generate": ("generate", "generate_text"),
    "metrics": ("Evaluation",),
    "model": ("CharLSTM", "init_carry", "init_params"),
    "ops.lstm.reference": ("LSTMCell",),
    "progress.history": ("History",),
    "progress.notebook": ("NotebookReporter",),
    "progress.plain": ("PlainReporter",),
    "progress.reporter": ("Reporter",),
    "progress.terminal": ("TerminalReporter",),
    "progress.tracker": ("TensorBoard", "Tracker"),
    "runs.checkpoint": ("restore_checkpoint",),
    "runs.checkpoint_store": ("save_checkpoint",),
    "runs.imported": ("import_model",),
    "runs.model_file": ("load_model", "save_model"),
    "train_state": ("TrainState", "init_train_state"),
    "training.evaluate": ("evaluate", "make_eval_step"),
    "training.fit": ("fit",),
    "training.optimizer": ("make_optimizer",),
    "training.presets": ("preset",),
    "training.step": ("make_train_step",),
    "training.sweep": ("sweep",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}
_SUBPACKAGES = ("export", "interop", "ops")


# Type checkers use the imports above; if they saw this function, they would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _SUBPACKAGES:
            return importlib.import_module(f"charjax.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'charjax' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"charjax.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
