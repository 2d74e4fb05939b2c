"""What is left in a run folder where training was killed before its first checkpoint was complete."""

import re
import shutil
import time
from pathlib import Path

from charjax.errors import UserError
from charjax.runs.integrity import SEAL
from charjax.runs.lock import LOCK
from charjax.runs.metadata import RunInfo
from charjax.runs.safe_files import read_json

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
# Under its new name, a file is not complete yet.
_CONFIG_NEW = CONFIG + ".new"
_LOGS = ("metrics.jsonl", "samples.txt")
_FILES = (CONFIG, _CONFIG_NEW, LOCK, *_LOGS)
# The first checkpoint's folder before and after Orbax commits it.
_FIRST = re.compile(r"0(\.orbax-checkpoint-tmp.*)?")


def is_leftover(folder: Path) -> bool:
    """Whether a folder holds what charjax writes before its first checkpoint is complete, and nothing else.

    Raises:
        OSError: it may not be read.
    """
    names = set()
    for path in folder.iterdir():
        is_ours = path.is_dir() if path.name == CHECKPOINTS else path.name in _FILES and path.is_file()
        if not is_ours or path.is_symlink():
            return False
        names.add(path.name)
    if CONFIG not in names:
        return bool(names) and names <= {_CONFIG_NEW, LOCK}  # nothing else was written before it
    logs_are_empty = all((folder / name).stat().st_size == 0 for name in names & {*_LOGS})
    return logs_are_empty and _is_run_config(folder / CONFIG) and _has_no_checkpoint(folder / CHECKPOINTS)


def remove_leftovers(folder: Path) -> None:
    """Removes what `is_leftover` found, and no more.

    Raises:
        OSError: it cannot be removed.
    """
    for name in (CONFIG, _CONFIG_NEW, *_LOGS):
        # A read-only file system refuses to remove even what is not there.
        if (folder / name).exists():
            (folder / name).unlink()
    remove_tree(folder / CHECKPOINTS)


def remove_tree(path: Path) -> None:
    """Removes a folder for good: where a save failed, writers in the background may still add files for a moment.

    Of a symbolic link, the link is removed, and not what it leads to.
    """
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    absent = 0
    for _ in range(100):
        shutil.rmtree(path, ignore_errors=True)
        absent = 0 if path.exists() else absent + 1
        if absent == 3:
            return
        time.sleep(0.02)


def _is_run_config(path: Path) -> bool:
    try:
        RunInfo.from_dict(read_json(path))
    except UserError:
        return False
    return True


def _has_no_checkpoint(folder: Path) -> bool:
    if not folder.exists():
        return True
    return all(_FIRST.fullmatch(path.name) and not (path / SEAL).exists() for path in folder.iterdir())
