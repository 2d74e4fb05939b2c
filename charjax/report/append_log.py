"""A text file that grows by whole entries, and can be taken back to where it stood at a checkpoint."""

import os
from pathlib import Path
from typing import Self

from charjax.errors import UserError
from charjax.lock import open_here

_PIECE = 1 << 20
_LONGEST_LINE = 1 << 32  # bytes


class AppendLog:
    """A UTF-8 file open for appending, flushed at every entry; a context manager. Surrogates become escapes.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path, *, size: int | None = None) -> None:
        """Opens the file, made where there is none, and drops a last line that was cut off by a crash.

        Args:
            path: the file; its folder must exist.
            size: bytes of the file to go on from, the rest is cut away; 0 starts afresh, None keeps all.

        Raises:
            UserError: it is a link, no file, or of no lines.
            OSError: the file cannot be opened for writing.
        """
        self.path = Path(path)
        self._file = os.fdopen(open_here(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b")
        try:
            if size is not None and size < self.size:
                self._file.truncate(size)
            self._drop_cut_line()
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Length of the file in bytes, to go on from later."""
        return self._file.seek(0, os.SEEK_END)

    def write(self, entry: str) -> None:
        """Writes an entry, which must end with a newline, and flushes it."""
        self._file.write(entry.encode("utf-8", errors="backslashreplace"))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drop_cut_line(self) -> None:
        end = size = self.size
        while end > 0:
            # From its end, a piece at a time: it may be larger than memory.
            start = max(0, end - _PIECE)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                self._file.truncate(start + found + 1)
                return
            if size - start > _LONGEST_LINE:
                raise UserError(f"{self.path} is not of lines: remove it, or choose another --out")
            end = start
        self._file.truncate(0)
