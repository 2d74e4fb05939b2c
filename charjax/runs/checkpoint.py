"""Checkpoints, by Orbax: each holds the whole TrainState and says what run it belongs to.

Under RUN/checkpoints there is a folder per step kept: the latest two and the best. Each carries, as Orbax's custom
metadata, the RunInfo (configuration and vocabulary) and the Progress, and is sealed once it is complete: one that is
not, or has changed since, is passed over for the one before it.

A run folder may come from anyone, and so may the seal. What Orbax and TensorStore read is looked at first: there must
be just the arrays that the configuration implies, stored as charjax stores them.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from charjax.array_types import Params
from charjax.data.vocab import Vocab
from charjax.errors import UserError, in_short
from charjax.memory_budget import check_room_to_load, count_parameters
from charjax.model import CharLSTM, init_params, model_to_use
from charjax.runs.array_manifest import StoredArray, read_stored_arrays
from charjax.runs.integrity import BrokenSealError, check_digests, measure, read_seal
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.safe_files import LARGEST_JSON, read_json
from charjax.runs.unfinished import CHECKPOINTS, is_leftover
from charjax.train_state import TrainState

STEP_NAME = re.compile("0|[1-9][0-9]*")
_METADATA = "_CHECKPOINT_METADATA"
# Bytes of a checkpoint that are not those of its arrays: their descriptions, beside its metadata.
_BYTES_PER_ARRAY = 8192

_log = logging.getLogger("charjax")
# Orbax warns of a step that is of OCDBT alone.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in record.getMessage())


class Header(NamedTuple):
    """What a checkpoint says of itself before its arrays are read.

    Attributes:
        path: its folder.
        info: the run that it belongs to.
        progress: how far that run had come.
    """

    path: Path
    info: RunInfo
    progress: Progress


def restore_checkpoint(run_dir: str | Path, abstract: TrainState) -> tuple[TrainState, RunInfo, Progress]:
    """Restores the latest checkpoint that can be read; one passed over is warned of.

    Args:
        run_dir: the run folder.
        abstract: shapes, dtypes and shardings to restore to; see `abstract_train_state`. The devices may be others
            than those it was saved on.

    Returns:
        The state, on its devices, and what the checkpoint says of the run.

    Raises:
        UserError: no run, or none of its checkpoints can be read.
    """
    header = read_header(run_dir)
    return load_state(header.path, abstract), header.info, header.progress


def load_state(path: Path, abstract: TrainState) -> TrainState:
    """Loads the state from a checkpoint's folder; where several processes train together, all of them at the same time.

    Args:
        path: `Header.path`.
        abstract: as `restore_checkpoint` has it.
    """
    parts = _load(path, checkpoint_parts(abstract))
    return parts["training"].replace(params=parts["params"])


def load_params(run_dir: str | Path) -> tuple[Params, RunInfo, Progress]:
    """Loads the parameters with the lowest validation loss; before the first evaluation, the latest.

    Args:
        run_dir: the run folder; it is not written to.

    Returns:
        The parameters, on the default device, and what their checkpoint says of the run.

    Raises:
        UserError: no run, or none of its checkpoints can be read.
    """
    steps = _steps(run_dir)
    header, passed_over = _first_readable(run_dir, steps)
    best_step = header.progress.best_step
    if best_step in steps and best_step != header.progress.step:
        steps.sort(key=lambda step: (step == best_step, step))
        header, also = _first_readable(run_dir, steps)
        passed_over += [reason for reason in also if reason not in passed_over]
    _warn(passed_over, header)
    parts = _load(header.path, _abstract_params(header.info))
    # Not jnp.asarray, which compiles a program for each shape.
    return jax.device_put(parts["params"]), header.info, header.progress


def load_model(run_dir: str | Path) -> tuple[CharLSTM, Params, Vocab]:
    """Loads the best model of a run from its folder alone.

    Args:
        run_dir: the run folder.

    Returns:
        The model, its parameters with the lowest validation loss so far, and its vocabulary.

    Raises:
        UserError: no run, or none of its checkpoints can be read.
    """
    params, info, _ = load_params(run_dir)
    return model_to_use(info.model, info.vocab.size), params, info.vocab


def read_header(run_dir: str | Path, *, quiet: bool = False, up_to: int | None = None) -> Header:
    """Reads what the latest checkpoint that can be read says of its run, without its arrays.

    Args:
        run_dir: the run folder.
        quiet: leave it to the restore that follows to warn of checkpoints passed over.
        up_to: a step; later checkpoints are left out, if there is one of it or before it.

    Raises:
        UserError: no run, or none of its checkpoints can be read.
    """
    steps = _steps(run_dir)
    header, passed_over = _first_readable(run_dir, [step for step in steps if up_to is None or step <= up_to] or steps)
    if not quiet:
        _warn(passed_over, header)
    return header


def _steps(run_dir: str | Path) -> list[int]:
    """The steps saved, in rising order.

    Raises:
        UserError: no run folder.
        OSError: a folder that may not be read.
    """
    if not Path(run_dir).is_dir():
        what = "is a file, no run folder" if Path(run_dir).exists() else "does not exist"
        raise UserError(f"{run_dir} {what}; give the --out folder of a charjax train")
    if is_leftover(Path(run_dir)):
        raise UserError(
            f"{run_dir} was stopped before its first checkpoint was complete; "
            "start it over: charjax train without --resume"
        )
    folder = Path(run_dir) / CHECKPOINTS
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link; put the folder itself there")
    steps = saved_steps(folder) if folder.is_dir() else []
    if not steps:
        raise UserError(
            f"{run_dir} is not a run folder: it has no checkpoints; give the --out folder of a charjax train"
        )
    return steps


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps saved in a checkpoints folder, in rising order."""
    # Not Path.glob, which finds nothing in a folder that may not be read.
    return sorted(int(path.name) for path in folder.iterdir() if STEP_NAME.fullmatch(path.name) and path.is_dir())


def _first_readable(run_dir: str | Path, steps: list[int]) -> tuple[Header, list[str]]:
    """Tries the steps from the last to the first: -> (what could be read, what is wrong with those before it)."""
    reasons: list[str] = []
    for step in reversed(steps):
        try:
            return _read_header(Path(run_dir).resolve() / CHECKPOINTS / str(step)), reasons
        except BrokenSealError as error:
            reasons.append(f"checkpoint {step} of {run_dir} cannot be read ({error})")
    raise UserError(f"{reasons[0]}, and no other one can; train anew with another --out")


def _warn(passed_over: list[str], header: Header) -> None:
    for reason in passed_over:
        _log.warning("%s; using checkpoint %d in its place", reason, header.progress.step)


def _read_header(path: Path) -> Header:
    """Checks a checkpoint, and reads what it says of itself.

    Raises:
        BrokenSealError: it is not complete, or damaged.
        UserError: it is not what charjax wrote.
    """
    size, digests = measure(path), read_seal(path)
    check_digests(path, digests, [_METADATA])
    header = _parse_header(path)
    if size > _largest_size(header.info):
        raise BrokenSealError(f"it takes {size:,} bytes, more than its model and training state")
    check_digests(path, digests, digests)
    return header


def _parse_header(path: Path) -> Header:
    # Not by Orbax, which opens all arrays on the way.
    metadata = read_json(path / _METADATA)
    try:
        handlers, metadata = metadata["item_handlers"].values(), metadata["custom_metadata"]
        header = Header(path, RunInfo.from_dict(metadata["info"]), Progress.from_dict(metadata["progress"]))
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{_in_words(path)} was written by another version of charjax: {error}") from error
    if header.progress.step != int(path.name):
        raise UserError(f"{path} says that it is of step {header.progress.step}: it is not what charjax wrote")
    # Others read files of other kinds.
    if not all(isinstance(name, str) and name.endswith(".PyTreeHandler") for name in handlers):
        raise UserError(f"{path} holds something else than arrays: it is not what charjax wrote")
    return header


def _largest_size(info: RunInfo) -> int:
    """Bytes that a checkpoint can take: the parameters and their moments, and the recurrent state, in float32."""
    hidden, layers = info.model.hidden_dim, info.model.hidden_layers
    numbers = 3 * count_parameters(info.model, info.vocab.size) + 2 * layers * hidden * info.train.batch_size
    # Each device may write its part of an array, and describes it.
    arrays = 16 * (layers + 2) * max(jax.device_count(), info.train.batch_size)
    return 4 * numbers + _BYTES_PER_ARRAY * arrays + 4 * LARGEST_JSON


def _load(path: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Loads arrays after a look at what they are: Orbax would load what is there, of any size."""
    expected = _described(abstract)
    stored = {f"{part}/{place}": array for part in abstract for place, array in read_stored_arrays(path / part).items()}
    _check_arrays(path, stored, expected)
    with _made_readable(path):
        # NumPy arrays in the place of shapes make Orbax restore without regard to the devices it was saved on.
        targets = jax.tree.map(lambda leaf: leaf if leaf.sharding else np.empty(leaf.shape, leaf.dtype), abstract)
        loaded = ocp.load_checkpointables(path, targets)
    _check_arrays(path, _described(loaded), expected)
    return loaded


def _check_arrays(path: Path, found: dict[str, StoredArray], expected: dict[str, StoredArray]) -> None:
    for name in sorted({*found, *expected}):
        if found.get(name) == expected.get(name):
            continue
        what = f"({name} is {found.get(name, 'missing')}, not {expected.get(name, 'missing')})"
        if name.startswith("params/") or (name in found and name in expected):
            raise UserError(f"{_in_words(path)} does not match its configuration {what}")
        raise UserError(f"{_in_words(path)} was written by another version of charjax {what}")


def _described(tree: Any) -> dict[str, StoredArray]:
    """What each array is, by its place; keys of random numbers as the bits that are stored of them."""
    found = {}
    for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))  # noqa: PLW2901
        name = jax.tree_util.keystr(place, simple=True, separator="/")
        found[name] = StoredArray(tuple(leaf.shape), np.dtype(leaf.dtype).name)
    return found


def _in_words(path: Path) -> str:
    return f"checkpoint {path.name} of {path.parent.parent}"


@contextlib.contextmanager
def _made_readable(path: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise on files that charjax did not write so into one line."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Orbax's own are about its registry
            cause = cause.__cause__
        reason = in_short(str(cause))
        raise UserError(f"{_in_words(path)} cannot be read ({type(cause).__name__}: {reason})") from error


def checkpoint_parts(state: TrainState) -> dict[str, Any]:
    """The state in two, so that the parameters can be loaded without the rest."""
    return {"params": state.params, "training": state.replace(params=None)}  # type: ignore[attr-defined]


def _abstract_params(info: RunInfo) -> dict[str, Any]:
    check_room_to_load(info.model, info.vocab.size)
    model = CharLSTM.from_config(info.model, info.vocab.size)
    return {"params": jax.eval_shape(lambda: init_params(jax.random.key(0), model))}
