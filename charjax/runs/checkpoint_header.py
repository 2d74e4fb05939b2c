"""Reads a checkpoint's metadata from its JSON, without importing Orbax."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from charjax.errors import UserError
from charjax.runs.integrity import DIGESTS, DamagedError, check_digests
from charjax.runs.layout import CHECKPOINTS
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.safe_files import read_json
from charjax.runs.unfinished import check_run_folder

_STEP_NAME = re.compile("0|[1-9][0-9]*")
_METADATA = "_CHECKPOINT_METADATA"

_log = logging.getLogger("charjax")


class Header(NamedTuple):
    """The metadata of a checkpoint.

    Attributes:
        path: the checkpoint folder.
        info: the run's configuration.
        progress: the run's progress.
    """

    path: Path
    info: RunInfo
    progress: Progress


def read_header(run_dir: str | Path, *, quiet: bool = False, up_to: int | None = None) -> Header:
    """Reads the metadata of the latest undamaged checkpoint.

    Args:
        run_dir: the run folder.
        quiet: log no warnings about damaged checkpoints, because the restore that follows logs them.
        up_to: a step; checkpoints after it are ignored if there is one at or before it.

    Raises:
        UserError: the folder is not a run folder, or all checkpoints are damaged.
    """
    steps = _steps(Path(run_dir))
    wanted = [step for step in steps if up_to is None or step <= up_to] or steps
    reasons: list[str] = []
    for step in reversed(wanted):
        try:
            header = read_header_at(Path(run_dir).resolve() / CHECKPOINTS / str(step))
        except DamagedError as error:
            reasons.append(f"checkpoint {step} of {run_dir} cannot be read ({error})")
            continue
        for reason in [] if quiet else reasons:
            _log.warning("%s; using checkpoint %d instead", reason, step)
        return header
    raise UserError(f"{reasons[0]}, nor can any other checkpoint; train again with a different --out")


def read_header_at(path: Path) -> Header:
    """Reads the metadata of one checkpoint after checking all of its files.

    Args:
        path: the checkpoint folder.

    Raises:
        DamagedError: the checkpoint is incomplete or damaged.
        UserError: the checkpoint was written by a different version of charjax, or its folder was renamed.
    """
    check_digests(path)
    metadata = read_json(path / _METADATA)
    try:
        metadata = metadata["custom_metadata"]
        header = Header(path, RunInfo.from_dict(metadata["info"]), Progress.from_dict(metadata["progress"]))
    except (UserError, KeyError, TypeError) as error:
        reason = f"was written by a different version of charjax: {error}"
        raise UserError(f"{describe_checkpoint(path)} {reason}") from error
    if header.progress.step != int(path.name):
        raise UserError(f"{path} is a checkpoint for step {header.progress.step}; rename it to {header.progress.step}")
    return header


def saved_steps(folder: Path) -> list[int]:
    """Returns the sorted steps of all checkpoints in a folder, complete or not; other folders are ignored."""
    # Path.glob would find nothing in an unreadable folder instead of raising an error.
    return sorted(int(path.name) for path in folder.iterdir() if _is_checkpoint(path))


def _is_checkpoint(path: Path) -> bool:
    """Returns True if a folder is named after a step and contains checkpoint metadata or digests."""
    return bool(_STEP_NAME.fullmatch(path.name)) and any((path / name).is_file() for name in (_METADATA, DIGESTS))


def describe_checkpoint(path: Path) -> str:
    """Returns the name of a checkpoint for use in messages."""
    return f"checkpoint {path.name} of {path.parent.parent}"


def _steps(run_dir: Path) -> list[int]:
    check_run_folder(run_dir)
    folder = run_dir / CHECKPOINTS
    steps = saved_steps(folder) if folder.is_dir() else []
    if not steps:
        raise UserError(
            f"{run_dir} is not a run folder: it has no checkpoints; pass the --out folder of a training run"
        )
    return steps
