"""A run folder while it is written to: checkpoints, config.json, metrics.jsonl and samples.txt, kept in step."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from charjax.errors import UserError
from charjax.metrics import Evaluation
from charjax.runs.checkpoint import read_header
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.compatibility import check_same_run
from charjax.runs.lock import LOCK, FolderLock
from charjax.runs.logs import MetricsLog, SamplesLog
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.safe_files import open_here
from charjax.runs.unfinished import CONFIG, is_leftover, remove_leftovers, remove_tree
from charjax.train_state import TrainState

# What the user can do where the system refuses to write.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions"),
    errno.EROFS: "make its file system writable",
}

_log = logging.getLogger("charjax")


class RunFolder:
    """A run folder open for writing; a context manager that waits for what is still being saved.

    One process at a time writes to a run folder; a lock sees to it. A new run that fails before its first checkpoint is
    complete leaves nothing behind.

    Attributes:
        path: the folder.
        resumed: whether it goes on from an earlier checkpoint.
    """

    def __init__(self, path: str | Path, info: RunInfo, *, resume: bool) -> None:
        """Checks the folder; nothing is written before the first save.

        Raises:
            UserError: without `resume`, a folder that is not empty, unless a run was killed in it before its first
                checkpoint was complete; with it, one that is no run or does not match.
        """
        # Path.resolve() raises on a link to itself.
        self.path = Path(os.path.realpath(path))
        self.resumed = resume
        self._info = info
        self._lock = FolderLock(self.path)
        self._open = contextlib.ExitStack()
        self._store: CheckpointStore
        self._metrics: MetricsLog
        self._samples: SamplesLog
        self._is_complete = resume
        self._made: Path | None = None
        self._has_leftovers = self._is_started = False
        if self.path.is_symlink():
            raise UserError(f"{path} is a symbolic link that leads back to itself; choose another --out")
        if resume:
            check_same_run(read_header(path, quiet=True).info, info, path)
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{path} is a file; give --out a folder")
        elif self.path.exists() and is_leftover(self.path):
            self._has_leftovers = True
            _log.info(
                "%s holds a run that was stopped before its first checkpoint was complete: starting it over", path
            )
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{path} exists already; add --resume to go on with it, or choose another --out")

    def __enter__(self) -> Self:
        """Opens it; a folder to go on in is locked from here on, a new one as soon as it is made.

        Raises:
            UserError: another process writes to it, or it may not be written.
        """
        if self.resumed:
            with self._advised():
                self._lock.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with self._advised():
                self._open.close()
        finally:
            if self._is_started and not self._is_complete:
                # What refused to be written may refuse to be removed: the error under way tells of it.
                with contextlib.suppress(OSError):
                    self._remove()
            self._lock.release()

    def go_on_from(self, progress: Progress) -> None:
        """Takes metrics.jsonl and samples.txt back to where they stood at a checkpoint, and sets later ones aside.

        A run that is resumed begins so; called in the middle of a run, it goes back.
        """
        with self._advised():
            self._open.close()
            self.resumed = True
            self._start(progress, step=progress.step)

    def begin(self, progress: Progress) -> None:
        """Makes the folder of a new run; nothing is written before.

        Raises:
            UserError: the disk is full or may not be written.
        """
        with self._advised():
            self._start(progress, step=None)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves a checkpoint while training goes on, and waits for the first one.

        Raises:
            UserError: the disk is full or may not be written; checkpoints saved before stay as they are.
        """
        with self._advised():
            sizes = {"metrics_bytes": self._metrics.size, "samples_bytes": self._samples.size}
            self._store.save(state, dataclasses.replace(progress, **sizes))
            if not self._is_complete:
                self._store.wait()
        self._is_complete = True

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        if self._is_started:
            with self._advised():
                self._store.wait()

    def record(self, evaluation: Evaluation, sample: str) -> None:
        """Appends an evaluation to metrics.jsonl and its sample, where there is one, to samples.txt."""
        with self._advised():
            self._metrics.append(evaluation)
            if sample:
                self._samples.append(evaluation, sample)

    @contextlib.contextmanager
    def _advised(self) -> Iterator[None]:
        """Turns the system's errors into one line that says what to do."""
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0)
            if self._is_complete:
                advice = f"the checkpoints saved before are kept: {remedy or 'mend that'}, and go on with --resume"
            else:
                advice = f"nothing was kept: {remedy + ', or ' if remedy else ''}choose another --out"
            where = error.filename or self.path
            raise UserError(f"{where} cannot be written ({error.strerror or error}); {advice}") from error

    def _start(self, progress: Progress, *, step: int | None) -> None:
        """Makes and opens what the folder holds."""
        missing = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        self._made = missing[-1] if missing else None
        self._is_started = True
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.resumed:
            self._claim()
        if self._has_leftovers:
            remove_leftovers(self.path)
            self._has_leftovers = False
        _write_json(self.path / CONFIG, self._info.to_dict())
        # Before the logs are cut: a process killed in between goes on from the checkpoint that they then belong to.
        self._store = self._open.enter_context(CheckpointStore(self.path, self._info, step=step))
        metrics = MetricsLog(self.path / "metrics.jsonl", size=progress.metrics_bytes)
        self._metrics = self._open.enter_context(metrics)
        samples = SamplesLog(self.path / "samples.txt", size=progress.samples_bytes)
        self._samples = self._open.enter_context(samples)

    def _claim(self) -> None:
        """Locks the folder of a new run, and sees that it is still as it was found.

        Raises:
            UserError: another process was faster.
        """
        try:
            self._lock.acquire()
            if not self._has_leftovers and any(path.name != LOCK for path in self.path.iterdir()):
                raise UserError(f"{self.path} was made by another process at the same time; choose another --out")
        except UserError:
            self._is_started = False  # what it holds is the other's
            raise

    def _remove(self) -> None:
        """Removes what a failed start made, and no more: the folder may have been there, empty."""
        if self._made is not None:
            remove_tree(self._made)
        elif self.path.is_dir():
            remove_leftovers(self.path)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    """Replaces a file in one go, so that it is never half there."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(open_here(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(json.dumps(values, indent=2) + "\n")
    new.replace(path)
