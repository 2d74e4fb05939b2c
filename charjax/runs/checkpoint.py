"""Restores checkpoints with Orbax; `checkpoint_store` saves them, and layout.py lists their files.

RUN/checkpoints contains one folder per checkpoint kept: the latest two and the best one. Each contains the full
TrainState and, as Orbax custom metadata, the RunInfo and Progress. Digests of all files are written last; a checkpoint
that is incomplete or has since changed is skipped, and the previous one is restored.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from charjax.array_types import Params
from charjax.errors import UserError, check_type, checked_checkpoint_folder, in_short
from charjax.host.jax_modes import in_default_modes
from charjax.runs.checkpoint_header import describe_checkpoint, read_header
from charjax.runs.metadata import Progress, RunInfo
from charjax.train_state import TrainState


@in_default_modes
def restore_checkpoint(run_dir: str | Path, abstract: TrainState) -> tuple[TrainState, RunInfo, Progress]:
    """Restores the latest undamaged checkpoint; damaged ones are skipped with a warning in the log.

    Args:
        run_dir: the run folder.
        abstract: shapes, dtypes and shardings to restore to; see `abstract_train_state`. The devices may differ from
            those that the checkpoint was saved on.

    Returns:
        The state on its devices, the run's configuration, and its progress.

    Raises:
        UserError: the folder is not a run folder, the state's shapes or dtypes differ, or all checkpoints are damaged.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> from charjax import CharLSTM, Corpus, TrainConfig, init_train_state, make_mesh, make_optimizer
        >>> from charjax import restore_checkpoint, save_checkpoint
        >>> from charjax.runs.compatibility import describe_run
        >>> from charjax.runs.metadata import Progress
        >>> from charjax.train_state import abstract_train_state
        >>> corpus, config = Corpus.from_text("a flat white, please. "), TrainConfig()
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> model, optimizer = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1), make_optimizer(config, 9)
        >>> state = init_train_state(jax.random.key(0), model, optimizer, batch_size=4, mesh=mesh)
        >>> abstract = abstract_train_state(model, optimizer, batch_size=4, mesh=mesh)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save_checkpoint(run, state, describe_run(model, corpus, config), Progress(step=0))
        ...     restored, info, progress = restore_checkpoint(run, abstract)
        >>> bool((restored.params["head"]["kernel"] == state.params["head"]["kernel"]).all()), progress.step
        (True, 0)
    """
    advice = "make one with charjax.train_state.abstract_train_state"
    check_type("abstract", abstract, TrainState, advice)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None for leaf in jax.tree.leaves(abstract)):
        raise UserError(f"abstract must have a sharding for each array; {advice}")
    header = read_header(checked_checkpoint_folder("run_dir", run_dir))
    return load_state(header.path, abstract), header.info, header.progress


def load_state(path: Path, abstract: TrainState) -> TrainState:
    """Loads the state from a checkpoint folder; with multiple processes, all of them must call it.

    Args:
        path: `Header.path`.
        abstract: as in `restore_checkpoint`.
    """
    parts = _load(path, checkpoint_parts(abstract))
    return parts["training"].replace(params=parts["params"])


def load_checkpoint_params(path: Path, abstract: Params) -> Params:
    """Loads only the parameters from a checkpoint folder; with multiple processes, all of them must call it."""
    return _load(path, {"params": abstract})["params"]


def checkpoint_parts(state: TrainState) -> dict[str, Any]:
    """Splits a state into two parts, so that the parameters can be loaded without the rest."""
    return {"params": state.params, "training": state.replace(params=None)}


def _load(path: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Loads some parts of a checkpoint; Orbax and TensorStore exceptions are re-raised as UserError."""
    try:
        # Orbax would pad or cast an array of a different shape or dtype.
        stored = ocp.checkpointables_metadata(path).metadata
        _check_arrays(path, _describe({part: stored.get(part) for part in abstract}), _describe(abstract))
        return ocp.load_checkpointables(path, abstract)
    except (OSError, UserError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer exceptions are about Orbax's registry
            cause = cause.__cause__
        reason = in_short(str(cause))
        raise UserError(f"{describe_checkpoint(path)} cannot be read ({type(cause).__name__}: {reason})") from error


def _check_arrays(path: Path, found: dict[str, str], expected: dict[str, str]) -> None:
    for name in sorted({*found, *expected}):
        if found.get(name) == expected.get(name):
            continue
        if "opt_state" in name:  # the model is the same, since the parameters come first
            raise UserError(
                f"{describe_checkpoint(path)} was written with another optimizer, whose state has other arrays; "
                "pass the original optimizer to resume it"
            )
        what = f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'missing')}"
        if name in found and name in expected:
            raise UserError(f"{describe_checkpoint(path)} does not match the model ({what})")
        raise UserError(f"{describe_checkpoint(path)} was written by a different version of charjax ({what})")


def _describe(tree: Any) -> dict[str, str]:
    """Maps the path of each array in the tree to its dtype and shape; for a PRNG key, those of its stored bits."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))  # noqa: PLW2901
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return found
