"""A lock on a folder that one process at a time can hold, and that is gone with the process, however it ends."""

import contextlib
import errno
import logging
import os
import platform
import sys
from pathlib import Path

from charjax.errors import UserError
from charjax.runs.safe_files import open_here

LOCK = ".lock"
# What file systems answer that have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

_log = logging.getLogger("charjax")


class FolderLock:
    """An advisory lock (flock) on the file `.lock` in a folder, which is removed when it is released.

    The file of a process that was killed stays, unlocked, and stands in nobody's way.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: int | None = None

    def acquire(self) -> None:
        """Takes the lock; where the file system, or Windows, has none, it warns of that and goes on.

        Raises:
            UserError: another process holds it.
            OSError: the folder cannot be written.
        """
        while self._file is None:
            file = open_here(self._path, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(file)
                # Its holder may have removed the file since it was opened: then another one counts.
                if not self._is(file):
                    continue
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
                self._file, file = file, -1
            finally:
                if file >= 0:
                    os.close(file)

    def release(self) -> None:
        """Removes the file and gives the lock up; without it, does nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        # A file that cannot be removed, or is gone with its folder, stands in nobody's way.
        with contextlib.suppress(OSError):
            if self._is(file):
                if sys.platform == "win32":  # which removes no file that is open
                    os.close(file)
                    file = -1
                self._path.unlink()
        if file >= 0:
            os.close(file)

    def _lock(self, file: int) -> None:
        if sys.platform == "win32":
            self._warn()
            return
        import fcntl  # noqa: PLC0415 -- Windows has none

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            raise UserError(
                f"{self._path.parent} is being trained in by {holder}; wait until it ends, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._warn()

    def _warn(self) -> None:
        _log.warning("%s cannot be locked here; see that no other process trains in it", self._path.parent)

    def _is(self, file: int) -> bool:
        """Whether the path still leads to this file."""
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False
