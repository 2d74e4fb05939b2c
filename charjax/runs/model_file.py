"""Reads and writes model files: model.safetensors (float32 parameters), config.json and vocab.json.

A folder with these three files is a model, wherever it comes from: nothing in it is executed, links are not followed,
and names, dtypes, shapes and sizes are checked against config.json before anything large is read.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from charjax._version import __version__
from charjax.array_types import Params
from charjax.data.vocab import Vocab
from charjax.errors import UserError, checked_path
from charjax.generation.inputs import check_vocab, checked_params
from charjax.host.atomic_file import replacing
from charjax.host.jax_modes import in_default_modes
from charjax.memory_budget import check_room_to_load
from charjax.model import CharLSTM, model_to_use
from charjax.runs.checkpoint_header import read_header
from charjax.runs.layout import CHECKPOINTS, CONFIG, MODEL, VOCAB
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.new_folder import new_folder, writing
from charjax.runs.safe_files import parse_json, read_json
from charjax.runs.safetensors_file import read_arrays, write_arrays
from charjax.runs.unfinished import check_run_folder

_REWRITE = "run charjax train with --resume and the same --out"


def load_model(run_dir: str | Path) -> tuple[CharLSTM, Params, Vocab]:
    """Loads a run's best model so far, or the model in any folder that contains the three model files.

    Args:
        run_dir: the folder; it is only read, and does not need to contain checkpoints.

    Returns:
        The model, its parameters on the default device, and its vocabulary.

    Raises:
        UserError: the folder does not contain a model, or the model is damaged or does not fit in memory.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> from charjax import CharLSTM, Corpus, fit, load_model, make_mesh
        >>> corpus, mesh = Corpus.from_text("a flat white, please. " * 20), make_mesh(jax.devices()[:1])
        >>> model = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = fit(model, corpus, mesh=mesh, batch_size=4, seq_len=20, epochs=2, sample_length=0, out=run)
        ...     model, params, vocab = load_model(run)
        >>> params["head"]["kernel"].shape, vocab.kind
        ((8, 128), 'ascii')
    """
    params, info, _ = load_params(run_dir)
    return model_to_use(info.model, info.vocab.size), params, info.vocab


@in_default_modes
def save_model(out: str | Path, model: CharLSTM, params: Params, vocab: Vocab) -> None:
    """Saves a model to a new folder, as the three model files that `load_model` and every command can read.

    Args:
        out: the folder to create.
        model: the model.
        params: its parameters.
        vocab: its vocabulary.

    Raises:
        UserError: the folder is not empty or cannot be written, or the parameters or the vocabulary do not match the
            model.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, load_model, save_model
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model", model, init_params(jax.random.key(0), model), vocab)
        ...     load_model(f"{folder}/model")[2].characters
        'cefo'
    """
    params = checked_params(model, params)
    check_vocab(model, vocab)
    with new_folder(out) as path, writing(out):
        write_info(path, RunInfo(model=model.config, vocab=vocab, charjax_version=__version__))
        write_parameters(path, params, Progress(step=0))


@in_default_modes
def load_params(folder: str | Path) -> tuple[Params, RunInfo, Progress]:
    """Loads the same parameters as `load_model`, along with their run's configuration.

    Returns:
        The parameters on the default device, the configuration, and the progress at which they were saved (step 0 if
        the file does not say).

    Raises:
        UserError: as for `load_model`.
    """
    info = read_info(folder)
    check_room_to_load(info.model, info.vocab.size)
    arrays, progress = read_parameters(Path(folder), info)
    # jnp.asarray would compile a program for each shape.
    return jax.device_put(unflatten_dict(arrays, sep=".")), info, progress


def read_info(folder: str | Path) -> RunInfo:
    """Reads config.json and vocab.json.

    Raises:
        UserError: the folder does not contain a model, or a file is missing or not valid.
    """
    folder = checked_path("run_dir", folder)
    check_run_folder(folder)
    if not os.path.lexists(folder / MODEL):
        if (folder / CHECKPOINTS).is_dir():
            raise UserError(
                f"{folder} has no {MODEL}, which earlier versions of charjax did not write; to write it, {_REWRITE}"
            )
        raise UserError(
            f"{folder} is not a run folder or a model: it has no {MODEL}; pass the --out folder of a training run"
        )
    parts = {}
    for name in (CONFIG, VOCAB):
        try:
            parts[name] = read_json(folder / name)
        except FileNotFoundError as error:
            raise UserError(f"{folder} is not a model: it has no {name}") from error
    if not isinstance(parts[CONFIG], dict):
        raise UserError(f"{folder / CONFIG} is not a JSON object")
    try:
        return RunInfo.from_dict({**parts[CONFIG], "vocab": parts[VOCAB]})
    except UserError as error:
        raise UserError(f"{folder} cannot be loaded: {error}") from error


def read_run(folder: str | Path) -> tuple[RunInfo, Progress]:
    """Reads a run's configuration and progress from its latest checkpoint, or a model's from its files.

    Raises:
        UserError: the folder contains neither a run nor a model, or all checkpoints are damaged.
    """
    folder = Path(folder)
    check_run_folder(folder)
    if (folder / CHECKPOINTS).is_dir():
        return read_header(folder)[1:]
    info = read_info(folder)
    return info, read_parameters(folder, info)[1]


def read_parameters(folder: Path, info: RunInfo) -> tuple[dict[str, np.ndarray], Progress]:
    """Reads the arrays in model.safetensors by their dotted names, and the progress at which they were saved.

    Raises:
        UserError: the file does not match the configuration, or is damaged.
        OSError: the file cannot be read.
    """
    path = folder / MODEL
    try:
        arrays, metadata = read_arrays(path, parameter_shapes(info))
        progress = parse_json(metadata.get("progress", '{"step": 0}'), f"the progress in {path}")
        return arrays, Progress.from_dict(progress)
    except UserError as error:
        advice = f"; to write it again, {_REWRITE}" if (folder / CHECKPOINTS).is_dir() else ""
        raise UserError(f"{error}{advice}") from error


def write_info(folder: Path, info: RunInfo) -> None:
    """Writes config.json and vocab.json.

    Raises:
        OSError: a file cannot be written.
    """
    values = info.to_dict()
    vocab = values.pop("vocab")
    for name, part in ((CONFIG, values), (VOCAB, vocab)):
        with replacing(folder / name) as file:
            file.write(f"{json.dumps(part, indent=2)}\n".encode())


def write_parameters(folder: Path, params: Params, progress: Progress) -> None:
    """Writes model.safetensors.

    Args:
        folder: the folder to write to.
        params: the model's parameters.
        progress: the run's progress, stored with the parameters.

    Raises:
        OSError: the file cannot be written; the previous one is kept.
    """
    arrays = flatten_dict(jax.tree.map(np.asarray, params), sep=".")
    write_arrays(folder / MODEL, arrays, {"progress": json.dumps(progress.to_dict())})


def parameter_shapes(info: RunInfo) -> dict[str, tuple[int, ...]]:
    """Maps the dotted name of each parameter to its shape, as created by `init_params`."""
    vocab_size, hidden, gates = info.vocab.size, info.model.hidden_dim, 4 * info.model.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {"head.kernel": (hidden, vocab_size), "head.bias": (vocab_size,)}
    for layer in range(info.model.hidden_layers):
        inputs = hidden if layer else vocab_size
        cell = {"w_ih": (inputs, gates), "w_hh": (hidden, gates), "bias": (gates,)}
        shapes |= {f"layer_{layer}.cell.{name}": shape for name, shape in cell.items()}
    return shapes
