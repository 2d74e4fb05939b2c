"""Locks a folder for one process; the operating system releases the lock however the process ends."""

import contextlib
import errno
import logging
import os
import platform
import sys
from pathlib import Path

from charjax.errors import UserError
from charjax.runs.layout import LOCK
from charjax.runs.safe_files import open_for_writing

# Errors raised by file systems that do not support locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

_log = logging.getLogger("charjax")


class FolderLock:
    """An advisory lock (flock) on the file `.lock` in a folder; releasing it removes the file.

    If a process is killed, its file stays behind, unlocked and harmless.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: int | None = None

    def acquire(self) -> None:
        """Acquires the lock; only logs a warning on Windows or if the file system does not support locks.

        Raises:
            UserError: another process holds the lock; the message names the process.
            OSError: the folder cannot be written.
        """
        while self._file is None:
            file = open_for_writing(self._path, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(file)
                # The previous holder may have removed the file after it was opened here; if so, lock the new file.
                if not self._is(file):
                    continue
                self._file, file = file, -1
                try:
                    os.ftruncate(self._file, 0)
                    os.write(self._file, f"process {os.getpid()} on {platform.node()}".encode())
                except OSError:
                    self.release()
                    raise
            finally:
                if file >= 0:
                    os.close(file)

    def check(self) -> None:
        """Checks that the path still leads to the locked folder; does nothing if the lock has not been acquired.

        Raises:
            UserError: the folder was moved, removed or replaced.
        """
        if self._file is not None and not self._is(self._file):
            raise UserError(
                f"{self._path.parent} was moved, removed or replaced while a run was training in it; the run has "
                "stopped and can be continued with --resume from wherever its folder is now"
            )

    def release(self) -> None:
        """Removes the file and releases the lock if it was acquired."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # No harm is done if the file cannot be removed, or was removed along with its folder.
        with contextlib.suppress(OSError):
            if self._is(file):
                if sys.platform == "win32":  # where open files cannot be removed
                    os.close(file)
                    file = -1
                self._path.unlink()
        if file >= 0:
            os.close(file)

    def _lock(self, file: int) -> None:
        if sys.platform == "win32":
            self._warn()
            return
        import fcntl  # noqa: PLC0415 -- not on Windows

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            raise UserError(
                f"{self._path.parent} is in use by {holder}; wait until it ends, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._warn()

    def _warn(self) -> None:
        _log.warning("%s cannot be locked; make sure that no other process is training in it", self._path.parent)

    def _is(self, file: int) -> bool:
        """Returns True if the path still refers to this file."""
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False
