"""Text of a model on standard output."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from charjax.errors import UserError
from charjax.rendering.color_scale import Scale
from charjax.rendering.terminal_heatmap import has_colours, legend, marks_for, paint, trace
from charjax.rendering.visible_text import printable


def check_page(page: Path, *, text: Path, run: Path) -> None:
    """Checks that a page to be written takes the place of nothing that is still needed.

    Raises:
        UserError: it would replace the text, or a file of the run.
    """
    if page.exists() and text.exists() and page.samefile(text):
        raise UserError(f"--html {page} is the text itself, which the page would replace; name another file")
    if page.exists() and page.resolve().is_relative_to(run.resolve()):
        raise UserError(f"--html {page} is a file of the run, which the page would replace; name another file")


def write(text: str) -> None:
    """Writes model text at once: made harmless for a terminal, unchanged for a file or a pipe."""
    _write(printable(text, sys.stdout.encoding) if sys.stdout.isatty() else text)


def write_painted(characters: Iterable[tuple[str, float]], scale: Scale) -> None:
    """Writes a text in colours, or with marks under its lines where there are none, and before it what they mean.

    Args:
        characters: characters and their numbers, taken as they are shown.
        scale: the colours.
    """
    console = stdout_console()
    encoding = (sys.stdout.encoding if sys.stdout.isatty() else None) or "utf-8"
    width = shutil.get_terminal_size().columns
    if has_colours(console):
        _write_text(console, legend(scale))
        write("\n")
        for line in paint(characters, scale, width=width, encoding=encoding):
            _write_text(console, line)
        return
    marks = marks_for(encoding)
    sign = "+" if scale.low < 0 else ""
    ends = f"{marks[0]} is {scale.low:g}, {marks[-1]} is {scale.high:{sign}g}"
    write(f"{scale.name} under each character: {ends}, of {marks}\n\n")
    for text in trace(characters, scale, width=width, encoding=encoding):
        write(text + "\n")


def stdout_console() -> Console:
    """Standard output as rich sees it."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _write_text(console: Console, text: Text) -> None:
    """Writes a line of harmless characters with its colours; folded as it is, not as rich would."""
    with console.capture() as captured:
        console.print(text, soft_wrap=True)
    _write(captured.get())


def _write(text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(text)
    else:
        sys.stdout.buffer.write(_encode(text))
    sys.stdout.flush()


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, as a vocabulary from someone else may have
        return text.encode("utf-8", errors="backslashreplace")


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
