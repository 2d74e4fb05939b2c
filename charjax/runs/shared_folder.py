"""Shares a run folder between processes that train together; each saves its part, and the main one writes the rest."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from charjax.config import TrainConfig, from_dict
from charjax.distributed.processes import are_several, from_main, is_main, together
from charjax.errors import UserError
from charjax.metrics import Evaluation
from charjax.runs.checkpoint import load_checkpoint_params, load_state
from charjax.runs.checkpoint_header import Header, read_header
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.folder import RunFolder
from charjax.runs.layout import CHECKPOINTS
from charjax.runs.metadata import Progress, RunInfo
from charjax.train_state import TrainState


@contextlib.contextmanager
def open_run(out: str | Path | None, info: RunInfo, *, resume: bool) -> Iterator["SharedRun | None"]:
    """Opens a run folder in all processes; raises the same errors as `RunFolder`.

    Args:
        out: the folder, the same in all processes; None writes nothing to disk.
        info: the run's configuration.
        resume: continue from the latest checkpoint.
    """
    if out is None:
        if resume:
            raise UserError("only a run with a folder can be resumed; pass its folder as out")
        yield None
        return
    with contextlib.ExitStack() as stack:
        folder = None
        with together():
            if is_main():
                folder = stack.enter_context(RunFolder(out, info, resume=resume))
        yield SharedRun(folder, Path(os.path.realpath(out)), info, stack)


class SharedRun:
    """A run folder as seen by one of the processes that train together, or by a single process.

    With multiple processes, if the main one cannot write its logs, it stores the error in `failure` instead of raising
    it, because the others would wait for it in the next computation. All of them see the error at their next
    `check` and stop together.

    Attributes:
        path: the folder.
        failure: the error that occurred in this process since the last `check`, if any.
    """

    def __init__(self, folder: RunFolder | None, path: Path, info: RunInfo, stack: contextlib.ExitStack) -> None:
        self.path = path
        self.failure: UserError | None = None
        self._folder, self._info, self._stack = folder, info, stack
        self._store: CheckpointStore | None = None

    def restore(
        self,
        abstract: TrainState,
        *,
        up_to: int | None = None,
        check: Callable[[Progress], None] = lambda _: None,
    ) -> tuple[TrainState, Progress, TrainConfig]:
        """Restores a checkpoint, truncates metrics.jsonl and samples.txt to match, and rewrites an outdated model.

        Args:
            abstract: shapes, dtypes and shardings of the state; see `abstract_train_state`.
            up_to: a step; checkpoints after it are ignored if there is one at or before it. By default, the latest is
                restored. Checkpoints later than the restored one are renamed.
            check: called with the progress of the checkpoint before anything is written; may raise a `UserError`.

        Returns:
            The state, the progress, and the training configuration of the run up to that point.

        Raises:
            UserError: all checkpoints are damaged, or the folder cannot be written.
        """
        model: Header | None = None

        def choose() -> list[Any]:
            nonlocal model
            assert self._folder is not None
            self._folder.wait()
            latest = read_header(self.path, up_to=up_to)
            check(latest.progress)
            model = self._folder.outdated_model(latest)
            return [latest.progress.to_dict(), dataclasses.asdict(latest.info.train), model and model.progress.step]

        if self._store is not None:
            self._store.wait()
        values, earlier, model_step = from_main(choose)
        progress = Progress.from_dict(values)
        state = load_state(self._checkpoint(progress.step), abstract)
        params = state.params
        if model_step not in (None, progress.step):
            params = load_checkpoint_params(self._checkpoint(model_step), abstract.params)
        with together():
            if self._folder is not None:
                self._folder.go_back_to(progress)
                if model is not None:
                    self._folder.write_model(params, model.progress)
        return state, progress, from_dict(TrainConfig, earlier)

    def begin(self, progress: Progress) -> None:
        """Creates a new run's folder; raises the same errors as `RunFolder.begin`."""
        with together():
            if self._folder is not None:
                self._folder.begin(progress)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves a checkpoint in the background; all processes must call it.

        Raises:
            UserError: the disk is full or not writable; earlier checkpoints are kept.
        """
        if self._folder is not None:
            self._folder.save(state, progress)
            return
        if self._store is None:
            self._store = self._stack.enter_context(CheckpointStore(self.path, self._info))
        self._store.save(state, progress)

    def record(self, evaluation: Evaluation, sample: str) -> None:
        """Appends an evaluation and its sample to the logs."""
        try:
            if self._folder is not None:
                self._folder.record(evaluation, sample)
        except UserError as error:
            if not are_several():
                raise
            self.failure = self.failure or error

    def check(self) -> None:
        """Waits until the last save is on disk and raises the error of any process that could not write.

        Raises:
            UserError: a process could not write.
        """
        with together():
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure
            if self._folder is not None:
                self._folder.wait()
            elif self._store is not None:
                self._store.wait()

    def _checkpoint(self, step: int) -> Path:
        return self.path / CHECKPOINTS / str(step)
