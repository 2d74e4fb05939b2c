"""charjax: character-level LSTM language models in JAX and Flax.

The names below are imported when they are first used, so that `import charjax` costs nothing (PEP 562).
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from charjax.beam import beam_search, beam_search_text
    from charjax.checkpoint import load_model, restore_checkpoint, save_checkpoint
    from charjax.config import DynamicConfig, ModelConfig, SampleConfig, TrainConfig
    from charjax.corpus import Corpus, read_pieces
    from charjax.correlations import unit_correlations
    from charjax.dynamic import DynamicPiece, DynamicScore, dynamic_score, dynamic_score_pieces
    from charjax.evaluate import evaluate, make_eval_step
    from charjax.fit import fit
    from charjax.generate import generate, generate_text
    from charjax.model import CharLSTM, init_carry, init_params
    from charjax.neurons import activations, unit_activations
    from charjax.ops.lstm.flax_scan import LSTMCell
    from charjax.optimizer import make_optimizer
    from charjax.processes import join_processes
    from charjax.report.history import History
    from charjax.score import ScoredPiece, score, score_pieces
    from charjax.sharding import make_mesh, put_streams
    from charjax.streams import make_streams
    from charjax.train import make_train_step
    from charjax.train_state import TrainState, init_train_state
    from charjax.types import LSTMCarry, LSTMWeights
    from charjax.vocab import Vocab

_MODULE_OF = {
    "CharLSTM": "model",
    "Corpus": "corpus",
    "DynamicConfig": "config",
    "DynamicPiece": "dynamic",
    "DynamicScore": "dynamic",
    "History": "report.history",
    "LSTMCarry": "types",
    "LSTMCell": "ops.lstm.flax_scan",
    "LSTMWeights": "types",
    "ModelConfig": "config",
    "SampleConfig": "config",
    "ScoredPiece": "score",
    "TrainConfig": "config",
    "TrainState": "train_state",
    "Vocab": "vocab",
    "activations": "neurons",
    "beam_search": "beam",
    "beam_search_text": "beam",
    "dynamic_score": "dynamic",
    "dynamic_score_pieces": "dynamic",
    "evaluate": "evaluate",
    "fit": "fit",
    "generate": "generate",
    "generate_text": "generate",
    "init_carry": "model",
    "init_params": "model",
    "init_train_state": "train_state",
    "join_processes": "processes",
    "load_model": "checkpoint",
    "make_eval_step": "evaluate",
    "make_mesh": "sharding",
    "make_optimizer": "optimizer",
    "make_streams": "streams",
    "make_train_step": "train",
    "put_streams": "sharding",
    "read_pieces": "corpus",
    "restore_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "score": "score",
    "score_pieces": "score",
    "unit_activations": "neurons",
    "unit_correlations": "correlations",
}
_SUBPACKAGES = ("interop", "ops")

__all__ = [*sorted(_MODULE_OF), *_SUBPACKAGES]  # noqa: PLE0604 -- all of them are strings


class _Package(ModuleType):
    """Keeps `charjax.fit` the function: importing the module charjax.fit would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
