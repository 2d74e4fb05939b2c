"""Writes a run folder, keeping its model, checkpoints, config.json, metrics.jsonl and samples.txt consistent."""

import contextlib
import dataclasses
import enum
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from charjax.array_types import Params
from charjax.errors import UserError, is_limit, remedy_for
from charjax.host.limits import limit_on
from charjax.metrics import Evaluation
from charjax.runs.checkpoint_header import Header, read_header, read_header_at
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.compatibility import check_same_run
from charjax.runs.integrity import DamagedError
from charjax.runs.layout import CHECKPOINTS, LOCK, METRICS, SAMPLES
from charjax.runs.lock import FolderLock
from charjax.runs.logs import MetricsLog, SamplesLog
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.model_file import read_parameters, write_parameters
from charjax.runs.unfinished import is_unfinished_start, remove_unfinished_start
from charjax.train_state import TrainState

# Number of open files that Orbax needs to restore and save a small model. With fewer than a dozen, it aborts in C++, or
# mistakes a checkpoint that it could not open for one without arrays.
_LEAST_FILES = 64

_log = logging.getLogger("charjax")


class _Stage(enum.Enum):
    """Describes the contents of a run folder.

    Attributes:
        EMPTY: the folder is empty or does not exist yet.
        UNFINISHED: it has files of an earlier run that was killed before its first checkpoint.
        STARTED: it is locked and has files of this run but no complete checkpoint; they are removed if the run fails.
        SAVED: it has at least one complete checkpoint.
    """

    EMPTY = enum.auto()
    UNFINISHED = enum.auto()
    STARTED = enum.auto()
    SAVED = enum.auto()


class RunFolder:
    """A run folder that is open for writing; as a context manager, it waits for the last save on exit.

    A lock keeps other processes from writing to the folder. A new run that fails before its first checkpoint is
    complete leaves nothing behind.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path, info: RunInfo, *, resume: bool) -> None:
        """Checks the folder; nothing is written before `begin` or `go_back_to` is called.

        Raises:
            UserError: without `resume`, the folder is not empty, unless a run was killed in it before its first
                checkpoint; with `resume`, it contains no run, or one with a different configuration; or the limit on
                open files is too low for saving.
        """
        files = limit_on("NOFILE")
        if files is not None and files < _LEAST_FILES:
            raise UserError(f"only {files} files may be open at a time; raise the limit with ulimit -n {_LEAST_FILES}")
        # Path.resolve() raises on a link to itself.
        self.path = Path(os.path.realpath(path))
        self._info = info
        self._lock = FolderLock(self.path)
        self._open = contextlib.ExitStack()
        self._created: list[Path] = []  # the folders that this run created, innermost first
        self._store: CheckpointStore | None = None
        self._metrics: MetricsLog
        self._samples: SamplesLog
        if self.path.is_symlink():
            raise UserError(f"{path} is a symbolic link to itself; choose another --out")
        if resume:
            earlier = read_header(path, quiet=True).info
            check_same_run(earlier, info, path)
            self._info = dataclasses.replace(info, fit=earlier.fit)
            self._stage = _Stage.SAVED
        else:
            self._stage = _examine_new(self.path, path)

    def __enter__(self) -> Self:
        """Locks the folder if the run is being resumed; a new run's folder is locked by `begin`.

        Raises:
            UserError: another process is writing to the folder, or it cannot be written.
        """
        if self._stage is _Stage.SAVED:
            with self._advised():
                self._lock.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with self._advised():
                self._open.close()
        finally:
            # If files or folders cannot be removed either, the original error already says why.
            with contextlib.suppress(OSError, UserError):
                self._lock.check()
                if self._stage is _Stage.STARTED:
                    remove_unfinished_start(self.path)
            self._lock.release()
            with contextlib.suppress(OSError):
                self._remove_created_folders()

    def begin(self, progress: Progress) -> None:
        """Creates a new run's folder.

        Raises:
            UserError: another process created the folder first, or it cannot be written.
        """
        with self._writing():
            self._created = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim()
            found, self._stage = self._stage, _Stage.STARTED
            if found is _Stage.UNFINISHED:
                remove_unfinished_start(self.path)
            self._open_files(progress, step=None)

    def go_back_to(self, progress: Progress) -> None:
        """Truncates metrics.jsonl and samples.txt to their length at a checkpoint and renames later checkpoints.

        Called when a run is resumed and when a diverged run is rolled back.
        """
        with self._writing():
            self._open.close()
            self._open_files(progress, step=progress.step)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves a checkpoint in the background, except that it waits for the first one.

        Raises:
            UserError: the disk is full or not writable; earlier checkpoints are kept.
        """
        assert self._store is not None  # begin or go_back_to was called before
        with self._writing():
            sizes = {"metrics_bytes": self._metrics.size, "samples_bytes": self._samples.size}
            self._store.save(state, dataclasses.replace(progress, **sizes))
            if self._stage is _Stage.STARTED:
                self._store.wait()
        self._stage = _Stage.SAVED

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        if self._store is not None:
            with self._writing():
                self._store.wait()

    def record(self, evaluation: Evaluation, sample: str) -> None:
        """Appends an evaluation to metrics.jsonl and its sample, if it is not empty, to samples.txt."""
        with self._writing():
            self._metrics.append(evaluation)
            if sample:
                self._samples.append(evaluation, sample)

    def outdated_model(self, latest: Header) -> Header | None:
        """Returns the checkpoint from which to rewrite model.safetensors, or None if the file is up to date.

        The file is out of date if it is missing, as in run folders from earlier versions, or damaged, if the run was
        killed between saving the checkpoint and the model, and after a rollback.

        Args:
            latest: the checkpoint to continue from; it is used for the model if the best one is damaged.
        """
        progress = latest.progress
        with contextlib.suppress(UserError, OSError):
            saved = read_parameters(self.path, self._info)[1]
            if (saved.step, saved.best_val_loss) == (progress.model_step, progress.best_val_loss):
                return None
        try:
            return read_header_at(self.path / CHECKPOINTS / str(progress.model_step))
        except DamagedError as error:
            what = f"the best checkpoint, {progress.model_step} of {self.path}, cannot be read ({error})"
            _log.warning("%s; using checkpoint %d instead", what, progress.step)
            return latest

    def write_model(self, params: Params, progress: Progress) -> None:
        """Replaces model.safetensors."""
        with self._writing():
            write_parameters(self.path, params, progress)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Checks that the folder still belongs to this run, and explains errors."""
        self._lock.check()
        with self._advised():
            yield

    @contextlib.contextmanager
    def _advised(self) -> Iterator[None]:
        """Turns OS errors into a one-line message that says what to do, or that the folder has been replaced."""
        try:
            yield
        except UserError:
            raise
        except (ValueError, RuntimeError):  # from Orbax, e.g. if the folder was moved during a save
            self._lock.check()
            raise
        except OSError as error:
            self._lock.check()
            remedy, elsewhere = remedy_for(error), "" if is_limit(error) else "choose another --out"
            if self._stage is _Stage.SAVED:
                advice = f"earlier checkpoints are kept; {remedy or 'fix that'}, and continue with --resume"
            else:
                advice = f"nothing was kept; {', or '.join(filter(None, (remedy, elsewhere)))}"
            where = error.filename or self.path
            raise UserError(f"{where} cannot be written ({error.strerror or error}); {advice}") from error

    def _claim(self) -> None:
        """Locks a new run's folder and checks that it has not changed in the meantime.

        Raises:
            UserError: another process got there first.
        """
        self._lock.acquire()
        names = {path.name for path in self.path.iterdir()} - {LOCK}
        if names and not (self._stage is _Stage.UNFINISHED and is_unfinished_start(self.path)):
            raise UserError(f"{self.path} was changed by another process at the same time; choose another --out")

    def _remove_created_folders(self) -> None:
        """Removes the folders that a new run created and left empty; fails if others have used one since."""
        for folder in self._created if self._stage is not _Stage.SAVED else ():
            if os.path.lexists(folder):  # creating it may be what failed
                folder.rmdir()

    def _open_files(self, progress: Progress, *, step: int | None) -> None:
        # Open the store before truncating the logs, so that if the process is killed in between, the checkpoint that is
        # latest by then still matches them.
        self._store = self._open.enter_context(CheckpointStore(self.path, self._info, step=step, lock=self._lock))
        self._metrics = self._open.enter_context(MetricsLog(self.path / METRICS, size=progress.metrics_bytes))
        self._samples = self._open.enter_context(SamplesLog(self.path / SAMPLES, size=progress.samples_bytes))


def _examine_new(path: Path, name: str | Path) -> _Stage:
    """Checks that a new run may be written to a folder, which messages call `name`."""
    if not path.exists():
        return _Stage.EMPTY
    if not path.is_dir():
        raise UserError(f"{name} is a file; choose a folder for --out")
    if is_unfinished_start(path):
        _log.info("%s contains a run that was stopped before its first checkpoint was complete; starting it over", name)
        return _Stage.UNFINISHED
    if any(path.iterdir()):
        if not (path / CHECKPOINTS).is_dir():
            raise UserError(f"{name} already exists and is not a run that can be resumed; choose another --out")
        raise UserError(f"{name} already exists; add --resume to continue its run, or choose another --out")
    return _Stage.EMPTY
