"""Output that may come to nothing: what is told of a training must not end it."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_log = logging.getLogger("charjax")


class LastingFile:
    """A text file that loses what it cannot write: the terminal was closed, nobody reads the pipe, the disk is full.

    It says so once in the log, and goes on to try. All else is the file's own.
    """

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self._name = file, name
        self._has_failed = False

    def write(self, text: str) -> int:
        """Writes a text, or loses it."""
        with self._losing():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered, or keeps it for the next time."""
        with self._losing():
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                # Before the log, which may come here.
                self._has_failed = True
                _log.warning("%s can no longer be written (%s); training goes on", self._name, error.strerror)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """While entered, standard output and standard error lose what cannot be written."""
    output = cast(TextIO, LastingFile(sys.stdout, "standard output"))
    errors = cast(TextIO, LastingFile(sys.stderr, "standard error"))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield
