"""Saves a run's checkpoints and model in the background."""

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from charjax.array_types import Params
from charjax.distributed.processes import is_main
from charjax.errors import check_type, checked_checkpoint_folder
from charjax.host.jax_modes import in_default_modes
from charjax.runs.checkpoint import checkpoint_parts
from charjax.runs.checkpoint_header import saved_steps
from charjax.runs.integrity import DIGESTS, write_digests
from charjax.runs.layout import CHECKPOINTS
from charjax.runs.lock import FolderLock
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.model_file import write_info, write_parameters
from charjax.runs.unfinished import remove_temporary_files, remove_tree
from charjax.train_state import TrainState

KEEP_LATEST = 2
A_MONTH = 30 * 24 * 3600  # seconds
_REMOVED, _ORBAX_TEMPORARY = ".removed", ".orbax-checkpoint-tmp"
# Folders left behind when a save or removal was killed.
_INCOMPLETE = re.compile(rf"\d+({re.escape(_REMOVED)}|{re.escape(_ORBAX_TEMPORARY)}.*)")


class CheckpointStore:
    """Writes a run's checkpoints and model files; as a context manager, it waits for the last save on exit.

    A save copies the state and writes it in the background. With multiple processes, all of them open the same folder
    and save at the same time: each writes its part of the checkpoint, and the main one writes everything else.
    """

    def __init__(
        self, run_dir: str | Path, info: RunInfo, *, step: int | None = None, lock: FolderLock | None = None
    ) -> None:
        """Creates the folder if needed and writes config.json and vocab.json.

        Args:
            run_dir: the run folder.
            info: the run's configuration.
            step: step of the checkpoint that the run continues from. Later checkpoints, which were damaged or led to
                non-finite values, are renamed to STEP.set-aside; incomplete ones are removed.
            lock: the folder's lock, in the main process; nothing is written to a folder other than the locked one.

        Raises:
            OSError: the folder cannot be written.
        """
        self.run_dir = Path(run_dir).resolve()
        self.path = self.run_dir / CHECKPOINTS
        self._info, self._lock = info, lock
        self._writer = ThreadPoolExecutor(1, "charjax checkpoints")
        self._pending: Future[None] | None = None
        if is_main():
            self.run_dir.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(self.run_dir)
            write_info(self.run_dir, info)
            self.path.mkdir(exist_ok=True)
            _remove_incomplete(self.path)
            if step is not None:
                _rename_later(self.path, step)

    def __enter__(self) -> Self:
        logging.getLogger("absl").addFilter(_is_of_use)
        # This filter is never removed: futures left over from a failed save may be garbage-collected (and logged) at
        # any point afterwards.
        logging.getLogger("asyncio").addFilter(_is_not_told_yet)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            logging.getLogger("absl").removeFilter(_is_of_use)
            if is_main():
                self._check()
                _remove_incomplete(self.path)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Waits for the previous save, then starts saving a checkpoint, and the model if it is the best so far.

        The state may be donated as soon as this returns.

        Raises:
            OSError: this or the previous save failed, e.g. because the disk is full, or a folder named after the step
                already exists; earlier checkpoints are kept.
        """
        self.wait()
        folder = self.path / str(progress.step)
        if os.path.lexists(folder):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        with self._system_errors(), _context():
            response = ocp.save_checkpointables_async(
                folder,
                checkpoint_parts(state),
                custom_metadata={"info": self._info.to_dict(), "progress": progress.to_dict()},
            )
        is_model = is_main() and progress.model_step == progress.step
        params = jax.tree.map(np.array, state.params) if is_model else None
        self._pending = self._writer.submit(self._complete, response, folder, progress, params)

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            OSError: the save could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._system_errors():
                pending.result()

    def _complete(self, response: Any, folder: Path, progress: Progress, params: Params | None) -> None:
        """Waits for Orbax, writes the digests and the model, then removes old checkpoints; runs in the background."""
        response.result()
        if not is_main():
            return
        self._check()
        write_digests(folder)
        if params is not None:
            write_parameters(self.run_dir, params, progress)
        steps = saved_steps(self.path)
        for step in {*steps} - {*steps[-KEEP_LATEST:], progress.best_step}:
            _remove_checkpoint(self.path / str(step))

    def _check(self) -> None:
        if self._lock is not None:
            self._lock.check()

    @contextlib.contextmanager
    def _system_errors(self) -> Iterator[None]:
        """Converts TensorStore ValueErrors to OSErrors, with the error number taken from the message.

        The converted errors name the checkpoints folder, as do errors about Orbax's temporary files.
        """
        try:
            yield
        except OSError as error:
            if _ORBAX_TEMPORARY in str(error.filename):
                error.filename = str(self.path)
            raise
        except ValueError as error:
            match = re.search(r"os_error_code='(\d+)'", str(error))
            if match is None:
                raise
            raise OSError(int(match[1]), os.strerror(int(match[1])), str(self.path)) from error


@in_default_modes
def save_checkpoint(run_dir: str | Path, state: TrainState, info: RunInfo, progress: Progress) -> None:
    """Saves one checkpoint, and the model if it is the best so far, and waits until both are on disk.

    Args:
        run_dir: the run folder, created if needed.
        state: the training state to save.
        info: the run's configuration.
        progress: the run's progress; its step names the checkpoint.

    Raises:
        UserError: a run is being trained in the folder, or an argument has the wrong type.
        OSError: the folder cannot be written, the disk is full, or the step has already been saved.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> from charjax import CharLSTM, Corpus, TrainConfig, init_train_state, load_model, make_mesh, make_optimizer
        >>> from charjax import save_checkpoint
        >>> from charjax.runs.compatibility import describe_run
        >>> from charjax.runs.metadata import Progress
        >>> corpus, config = Corpus.from_text("a flat white, please. "), TrainConfig()
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> model, optimizer = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1), make_optimizer(config, 9)
        >>> state = init_train_state(jax.random.key(0), model, optimizer, batch_size=4, mesh=mesh)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     save_checkpoint(run, state, describe_run(model, corpus, config), Progress(step=0))
        ...     _, params, _ = load_model(run)
        >>> bool((params["head"]["kernel"] == state.params["head"]["kernel"]).all())
        True
    """
    run_dir = checked_checkpoint_folder("run_dir", run_dir)
    check_type("state", state, TrainState, "make one with init_train_state or fit")
    check_type("info", info, RunInfo, "make one with charjax.runs.compatibility.describe_run")
    check_type("progress", progress, Progress, "e.g. charjax.runs.metadata.Progress(step=0)")
    with contextlib.ExitStack() as stack:
        lock = FolderLock(run_dir)
        if is_main():
            run_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            stack.callback(lock.release)
        stack.enter_context(CheckpointStore(run_dir, info, lock=lock)).save(state, progress)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Returns False for Orbax's warning, at every save, about missing OCDBT files, which charjax does not use."""
    return "Skipping merge of OCDBT" not in record.getMessage()


def _is_not_told_yet(record: logging.LogRecord) -> bool:
    """Returns False for asyncio messages about other writes of a failed save, which charjax has already reported."""
    message = record.getMessage()
    return not ("exception was never retrieved" in message and "orbax" in message)


def _context() -> ocp.Context:
    """Returns Orbax options that store each array uncompressed in a separate file."""
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    context.array.saving.use_compression = False
    # No sharding file: arrays may be loaded onto devices other than those they were saved from.
    context.array.saving.enable_write_sharding_file = False
    # Write only the first device's copy; slicing out a part on each device would compile a program per shape.
    context.array.saving.use_replica_parallel = False
    # Orbax measures its timeout by the wall clock, which may jump and keeps running while the machine sleeps.
    context.asynchronous.timeout_secs = A_MONTH
    context.asynchronous.create_directories_asynchronously = False
    return context


def _remove_incomplete(path: Path) -> None:
    """Removes folders left behind when a save or removal was killed."""
    for incomplete in path.iterdir():
        if _INCOMPLETE.fullmatch(incomplete.name):
            remove_tree(incomplete)


def _remove_checkpoint(path: Path) -> None:
    """Renames a checkpoint and then removes it, so that readers never see a partial one."""
    renamed = path.with_name(path.name + _REMOVED)
    path.rename(renamed)
    shutil.rmtree(renamed)


def _rename_later(path: Path, step: int) -> None:
    for later in (path / str(found) for found in saved_steps(path) if found > step):
        if (later / DIGESTS).exists():
            target = later.with_name(later.name + ".set-aside")
            remove_tree(target)
            later.rename(target)
        else:
            remove_tree(later)
