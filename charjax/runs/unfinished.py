"""Recognizes and removes the files of a run that was killed before its first checkpoint was complete."""

import re
import shutil
import time
from pathlib import Path

from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.runs.integrity import DIGESTS
from charjax.runs.layout import CHECKPOINTS, CONFIG, LOCK, METRICS, MODEL, SAMPLES, VOCAB
from charjax.runs.metadata import RunInfo
from charjax.runs.safe_files import read_json

_ASCII = Vocab.ascii().to_dict()
_LOGS = (METRICS, SAMPLES)
# The model is not one of them, because it is written after the first checkpoint; a folder with a model is a model.
_FILES = (CONFIG, VOCAB, LOCK, *_LOGS)
# A file that was being replaced; see `replacing`.
_TEMPORARY = re.compile(rf"\.({'|'.join(map(re.escape, (CONFIG, VOCAB, MODEL)))})\.\d+\.new")
# The first checkpoint's folder before and after Orbax commits it.
_FIRST = re.compile(r"0(\.orbax-checkpoint-tmp.*)?")


def check_run_folder(path: Path) -> None:
    """Checks that a path is a folder, and not one whose run was killed before its first checkpoint.

    Raises:
        UserError: the path does not exist or is a file, or the run was killed before its first checkpoint.
        OSError: the folder cannot be read.
    """
    if not path.is_dir():
        what = "is a file, not a run folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; pass the --out folder of a training run")
    if is_unfinished_start(path):
        raise UserError(
            f"the run in {path} was stopped before its first checkpoint was complete; "
            "start it over by running charjax train without --resume"
        )


def is_unfinished_start(folder: Path) -> bool:
    """Returns True if a folder contains only what charjax writes before the first checkpoint is complete.

    Raises:
        OSError: the folder cannot be read.
    """
    names = set()
    for path in folder.iterdir():
        is_known = path.name in _FILES or _TEMPORARY.fullmatch(path.name)
        is_ours = path.is_dir() if path.name == CHECKPOINTS else is_known and path.is_file()
        if not is_ours or path.is_symlink():
            return False
        names.add(path.name)
    if CONFIG not in names:
        return bool(names) and all(name == LOCK or _TEMPORARY.fullmatch(name) for name in names)
    logs_are_empty = all((folder / name).stat().st_size == 0 for name in names & {*_LOGS})
    return logs_are_empty and _is_run_config(folder / CONFIG) and _has_only_an_unfinished_one(folder / CHECKPOINTS)


def remove_unfinished_start(folder: Path) -> None:
    """Removes the files that a run writes up to its first checkpoint, except the lock, and nothing else.

    The caller must hold the lock and must have either written these files or called `is_unfinished_start` since.

    Raises:
        OSError: a file cannot be removed.
    """
    remove_temporary_files(folder)
    for name in (CONFIG, VOCAB, MODEL, *_LOGS):
        # On a read-only file system, even removing a file that does not exist is an error.
        if (folder / name).exists():
            (folder / name).unlink()
    checkpoints = folder / CHECKPOINTS
    if checkpoints.is_dir() and not checkpoints.is_symlink():
        paths = list(checkpoints.iterdir())
        ours = [path for path in paths if _FIRST.fullmatch(path.name)]
        for path in [checkpoints] if ours == paths else ours:
            remove_tree(path)


def remove_temporary_files(folder: Path) -> None:
    """Removes temporary files left behind by writes that were killed."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def remove_tree(path: Path) -> None:
    """Removes a folder, even while the writers of a failed save are still adding files to it.

    A symbolic link itself is removed, not its target.
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
    """Returns True for a charjax config.json, including those of earlier versions, which contained the vocabulary."""
    try:
        values = read_json(path)
        return isinstance(values, dict) and bool(RunInfo.from_dict({"vocab": _ASCII, **values}).charjax_version)
    except UserError:
        return False


def _has_only_an_unfinished_one(folder: Path) -> bool:
    if not folder.exists():
        return True
    return all(_FIRST.fullmatch(path.name) and not (path / DIGESTS).exists() for path in folder.iterdir())
