"""Writes the output of the commands (facts, model text and heatmaps) to standard output."""

import contextlib
import json
import logging
import math
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from charjax.errors import UserError
from charjax.rendering.color_scale import Scale
from charjax.rendering.terminal_heatmap import color_lines, has_colors, legend, mark_lines, marks_for
from charjax.rendering.visible_text import one_line, printable

Facts = list[tuple[str, str]]

_log = logging.getLogger("charjax")


def write(text: str) -> None:
    """Writes and flushes model text, made safe for a terminal but unchanged for a file or a pipe."""
    _write(printable(text, sys.stdout.encoding) if sys.stdout.isatty() else text)


def write_facts(facts: Facts) -> None:
    """Writes names and values in two columns. Values are made safe, as an untrusted run may name any file."""
    width = max(len(name) for name, _ in facts)
    write("".join(f"{name:<{width}}  {one_line(value, stdout_encoding())}\n" for name, value in facts))


def write_json(values: Mapping[str, Any]) -> None:
    """Writes values as one line of strict JSON; non-finite numbers become null."""
    write(json.dumps(_finite(values), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_heatmap(characters: Iterable[tuple[str, float]], scale: Scale) -> None:
    """Writes a legend, then text in color or, where the output has no colors, with marks below each line.

    Args:
        characters: characters and their values, consumed as they are shown.
        scale: the color scale.
    """
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    encoding, width = stdout_encoding(), shutil.get_terminal_size().columns
    if has_colors(console):
        _write_colored(console, legend(scale))
        write("\n")
        for line in color_lines(characters, scale, width=width, encoding=encoding):
            _write_colored(console, line)
        return
    marks = marks_for(encoding)
    sign = "+" if scale.low < 0 else ""
    ends = f"{marks[0]} is {scale.low:g}, {marks[-1]} is {scale.high:{sign}g}"
    write(f"{scale.name} under each character, on the scale {marks}: {ends}\n\n")
    for text in mark_lines(characters, scale, width=width, encoding=encoding):
        write(text + "\n")


def shell_path(path: Path) -> str:
    """Quotes a path as an argument in a command that users can copy."""
    argument = str(path)
    return one_line(shlex.quote(f"./{argument}" if argument.startswith("-") else argument), stdout_encoding())


def stdout_encoding() -> str:
    """Returns the encoding of the terminal, or UTF-8 for files and pipes."""
    return (sys.stdout.encoding if sys.stdout.isatty() else None) or "utf-8"


def _write_colored(console: Console, text: Text) -> None:
    """Writes a line of safe characters in color, without rich's line wrapping."""
    with console.capture() as captured:
        console.print(text, soft_wrap=True)
    _write(captured.get())


def _write(text: str) -> None:
    try:
        if sys.stdout.isatty():
            sys.stdout.write(text)
        else:
            sys.stdout.buffer.write(_encode(text))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to standard output ({error.strerror})") from error


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, which an untrusted vocabulary may contain
        return text.encode("utf-8", errors="backslashreplace")


def report_page(page: Path, part: str = "") -> None:
    """Reports on standard error where a page was written and which part of the text it contains."""
    path = one_line(str(page), sys.stderr.encoding or "utf-8")
    print(f"written to {path}: {part}" if part else f"written to {path}", file=sys.stderr)


class _TolerantFile:
    """A text file that drops output it cannot write because a terminal or pipe was closed or the disk is full.

    The first failure is logged, and later writes are still attempted. All else is delegated to the wrapped file.
    """

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self._name = file, name
        self._has_failed = False

    def write(self, text: str) -> int:
        """Writes text, or drops it if the write fails."""
        with self._dropping():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the buffer, or keeps it for the next attempt if the write fails."""
        with self._dropping():
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                # Set before logging, which may write to this file.
                self._has_failed = True
                _log.warning("%s can no longer be written (%s); training continues", self._name, error.strerror)


@contextlib.contextmanager
def tolerate_lost_output() -> Iterator[None]:
    """Drops output that cannot be written to standard output or standard error inside a with block."""
    output = cast(TextIO, _TolerantFile(sys.stdout, "standard output"))
    errors = cast(TextIO, _TolerantFile(sys.stderr, "standard error"))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield
