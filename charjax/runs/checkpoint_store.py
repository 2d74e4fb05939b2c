"""The checkpoints of a run, open for writing: saved in the background, sealed, and removed when superseded."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from orbax.checkpoint import v1 as ocp

from charjax.distributed.processes import is_main
from charjax.runs.checkpoint import STEP_NAME, checkpoint_parts, saved_steps
from charjax.runs.integrity import SEAL, seal
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.unfinished import CHECKPOINTS, remove_tree
from charjax.train_state import TrainState

KEEP_LATEST = 2
A_MONTH = 30 * 24 * 3600  # seconds
_REMOVED = ".removed"


class CheckpointStore:
    """The checkpoints of a run, open for writing; a context manager that waits for the last save.

    A save copies the state, and writes it in the background while training goes on. Where several processes train
    together, all open the same folder and save at the same time: each writes what it has, the main one the rest.
    """

    def __init__(self, run_dir: str | Path, info: RunInfo, *, step: int | None = None) -> None:
        """Opens or makes RUN/checkpoints.

        Args:
            run_dir: the run folder.
            info: what the run is made of.
            step: the checkpoint that the run goes on from. Later ones, which could not be read, or led to numbers
                that are not finite, are set aside under the name STEP.set-aside; of a save that was cut short nothing
                is kept.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path = Path(run_dir).resolve() / CHECKPOINTS
        self._info = info
        self._writer = ThreadPoolExecutor(1, "charjax checkpoints")
        self._pending: Future[None] | None = None
        if is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(self.path)
            if step is not None:
                _set_aside_after(self.path, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            if is_main():
                _remove_unfinished(self.path)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Begins to save; waits first for the save before, if it still goes on.

        The state may be donated as soon as this returns.

        Raises:
            OSError: this or the save before failed, for want of space for example; earlier checkpoints remain.
            ValueError: the step is saved already.
        """
        self.wait()
        folder = self.path / str(progress.step)
        with self._translated(), _stored_plainly():
            response = ocp.save_checkpointables_async(
                folder,
                checkpoint_parts(state),
                custom_metadata={"info": self._info.to_dict(), "progress": progress.to_dict()},
            )
        self._pending = self._writer.submit(self._complete, response, folder, progress)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._translated():
                pending.result()

    def _complete(self, response: Any, folder: Path, progress: Progress) -> None:
        """Waits for a save, seals it, and only then removes those that are not kept; runs in the background."""
        with self._translated():
            response.result()
        if not is_main():
            return
        seal(folder)
        steps = saved_steps(self.path)
        for step in {*steps} - {*steps[-KEEP_LATEST:], progress.best_step}:
            _remove_checkpoint(self.path / str(step))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns TensorStore's errors into the system's: they are ValueErrors that carry its number in their text."""
        try:
            yield
        except ValueError as error:
            match = re.search(r"os_error_code='(\d+)'", str(error))
            if match is None:
                raise
            raise OSError(int(match[1]), os.strerror(int(match[1])), str(self.path)) from error


def save_checkpoint(run_dir: str | Path, state: TrainState, info: RunInfo, progress: Progress) -> None:
    """Saves one checkpoint and waits until it is on disk.

    Args:
        run_dir: the run folder, made where there is none.
        state: what to save.
        info: what the run is made of.
        progress: how far it has come; its step names the checkpoint.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        ValueError: the step is saved already.
    """
    with CheckpointStore(run_dir, info) as store:
        store.save(state, progress)


def _stored_plainly() -> ocp.Context:
    """Arrays as files of their own, each as it is in memory; see `stored_arrays`."""
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_compression = False
    # How arrays lay on devices does not matter: they are loaded to where they are wanted.
    context.array.saving.enable_write_sharding_file = False
    # Orbax measures by the wall clock, which may be set forward, or have gone on while the machine slept.
    context.asynchronous.timeout_secs = A_MONTH
    context.asynchronous.create_directories_asynchronously = False
    return context


def _remove_unfinished(path: Path) -> None:
    """Removes what a save or a removal that was cut off left behind."""
    for pattern in ("*.orbax-checkpoint-tmp", f"*{_REMOVED}"):
        for unfinished in path.glob(pattern):
            remove_tree(unfinished)


def _remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, which is whole for whoever looks for it until it is gone."""
    renamed = path.with_name(path.name + _REMOVED)
    path.rename(renamed)
    shutil.rmtree(renamed)


def _set_aside_after(path: Path, step: int) -> None:
    for later in path.glob("*"):
        if STEP_NAME.fullmatch(later.name) and int(later.name) > step:
            target = later.with_name(later.name + ".set-aside")
            remove_tree(target)
            if (later / SEAL).exists():
                later.rename(target)
            else:
                remove_tree(later)
