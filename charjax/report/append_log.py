"""A text file that grows by whole entries, and can be taken back to where it stood at a checkpoint."""

import os
from pathlib import Path
from typing import Self

from charjax.lock import open_here


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
            UserError: it is a link or no file.
            OSError: the file cannot be opened for writing.
        """
        self.path = Path(path)
        self._file = os.fdopen(open_here(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b")
        if size is not None and size < self.size:
            self._file.truncate(size)
        self._drop_cut_line()

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
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
