"""A run folder for processes that train together: the main one writes it, all save their part of each checkpoint."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from charjax.distributed.processes import are_several, from_main, is_main, together
from charjax.errors import UserError
from charjax.metrics import Evaluation
from charjax.runs.checkpoint import load_state, read_header
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.folder import RunFolder
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.unfinished import CHECKPOINTS
from charjax.train_state import TrainState


@contextlib.contextmanager
def open_run(out: str | Path | None, info: RunInfo, *, resume: bool) -> Iterator["SharedRun | None"]:
    """Opens a run folder in all processes; errors as `RunFolder` has them.

    Args:
        out: the folder, the same one for all processes; None keeps nothing.
        info: what the run is made of.
        resume: go on from the latest checkpoint.
    """
    if out is None:
        if resume:
            raise UserError("resume needs the run folder to go on from: give out")
        yield None
        return
    with contextlib.ExitStack() as stack:
        folder = None
        with together():
            if is_main():
                folder = stack.enter_context(RunFolder(out, info, resume=resume))
        yield SharedRun(folder, Path(os.path.realpath(out)), info, stack)


class SharedRun:
    """A run folder in one of the processes that train together, or in the only one.

    What the main process cannot write to its logs it notes in `failure`, where there are others: they would wait for it
    in the next computation. All learn of it at their next call, and leave together.

    Attributes:
        path: the folder.
        failure: what went wrong in this process since the last `check`.
    """

    def __init__(self, folder: RunFolder | None, path: Path, info: RunInfo, stack: contextlib.ExitStack) -> None:
        self.path = path
        self.failure: UserError | None = None
        self._folder, self._info, self._stack = folder, info, stack
        self._store: CheckpointStore | None = None

    def restore(self, abstract: TrainState, *, up_to: int | None = None) -> tuple[TrainState, Progress]:
        """Reads a checkpoint, and takes metrics.jsonl and samples.txt back to where they stood then.

        Args:
            abstract: shapes, dtypes and shardings; see `abstract_train_state`.
            up_to: a step, to leave later checkpoints out where there is one of it or before it; by default the latest
                is read. Checkpoints later than the one read are set aside.

        Raises:
            UserError: none can be read, or the folder cannot be written.
        """

        def choose() -> bytes:
            assert self._folder is not None
            self._folder.wait()
            return json.dumps(read_header(self.path, up_to=up_to).progress.to_dict()).encode()

        if self._store is not None:
            self._store.wait()
        progress = Progress.from_dict(json.loads(from_main(choose)))
        state = load_state(self.path / CHECKPOINTS / str(progress.step), abstract)
        with together():
            if self._folder is not None:
                self._folder.go_on_from(progress)
        return state, progress

    def begin(self, progress: Progress) -> None:
        """Makes the folder of a new run; errors as `RunFolder.begin`."""
        with together():
            if self._folder is not None:
                self._folder.begin(progress)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves a checkpoint while training goes on; all processes must.

        Raises:
            UserError: the disk is full or may not be written; checkpoints saved before stay as they are.
        """
        if self._folder is not None:
            self._folder.save(state, progress)
            return
        if self._store is None:
            self._store = self._stack.enter_context(CheckpointStore(self.path, self._info))
        self._store.save(state, progress)

    def record(self, evaluation: Evaluation, sample: str) -> None:
        """Appends an evaluation and its sample."""
        try:
            if self._folder is not None:
                self._folder.record(evaluation, sample)
        except UserError as error:
            if not are_several():
                raise
            self.failure = self.failure or error

    def check(self) -> None:
        """Waits until what was saved is on disk, and tells of what could not be written, in all processes.

        Raises:
            UserError: something could not be written.
        """
        with together():
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure
            if self._folder is not None:
                self._folder.wait()
            elif self._store is not None:
                self._store.wait()
