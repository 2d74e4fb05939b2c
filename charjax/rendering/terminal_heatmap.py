"""Shows text with a number per character in a terminal: as background colors, or as a line of marks below each line."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from charjax.rendering.color_scale import LIGHT_INK, Scale
from charjax.rendering.visible_text import name_character, printable

_BLOCKS, _DIGITS = "▁▂▃▄▅▆▇█", "0123456789"
_INK = Color.from_rgb(*LIGHT_INK)


class _Cell(NamedTuple):
    """A character on a terminal line.

    Attributes:
        shown: the character, or its name if it cannot be shown.
        columns: width of `shown`.
        value: its number.
    """

    shown: str
    columns: int
    value: float


def has_colors(console: Console) -> bool:
    """Returns whether a console supports colors: its terminal does or FORCE_COLOR is set, and NO_COLOR is not."""
    return console.color_system is not None and not console.no_color


def color_lines(characters: Iterable[tuple[str, float]], scale: Scale, *, width: int, encoding: str) -> Iterator[Text]:
    """Yields the text line by line, in color.

    Args:
        characters: characters and their numbers; NaN, for an unknown value, leaves the character uncolored.
        scale: the color scale. The terminal may be light or dark, so colored characters also set their text color.
        width: width in columns; longer lines are wrapped.
        encoding: encoding of the terminal.
    """
    for line in _fold(characters, width=width, encoding=encoding):
        text = Text()
        for level, cells in itertools.groupby(line, key=lambda cell: scale.level(cell.value)):
            text.append("".join(cell.shown for cell in cells), _style(scale, level))
        yield text


def legend(scale: Scale) -> Text:
    """Returns a line that explains the colors."""
    text = Text(f"{scale.name}: {scale.low:g} ")
    for level in range(scale.levels):
        text.append(" ", _style(scale, level))
    return text.append(f" {scale.high:g}")


def mark_lines(
    characters: Iterable[tuple[str, float]], scale: Scale, *, width: int, encoding: str = "utf-8"
) -> Iterator[str]:
    """Yields the text line by line, each line followed by its marks.

    Args:
        characters: characters and their numbers; NaN, for an unknown value, leaves the space below it blank.
        scale: the scale whose range is divided evenly between the marks.
        width: width in columns; longer lines are wrapped.
        encoding: encoding of the terminal or file.
    """
    marks = marks_for(encoding)
    scale = scale._replace(levels=len(marks))

    def mark(value: float) -> str:
        return " " if math.isnan(value) else marks[scale.level(value)]

    for line in _fold(characters, width=width, encoding=encoding):
        yield "".join(cell.shown for cell in line)
        yield "".join(mark(cell.value) * cell.columns for cell in line)


def marks_for(encoding: str) -> str:
    """Returns the marks from lowest to highest, in characters that the encoding supports."""
    return _BLOCKS if printable(_BLOCKS, encoding) == _BLOCKS else _DIGITS


def _fold(characters: Iterable[tuple[str, float]], *, width: int, encoding: str) -> Iterator[list[_Cell]]:
    """Yields the text line by line, wrapping lines that are too long."""
    line: list[_Cell] = []
    used = 0
    for character, value in characters:
        # Tabs and line breaks are shown by name, like everything else without a glyph.
        shown = character if character == " " else printable(name_character(character), encoding)
        columns = cell_len(shown)
        if line and used + columns > width:
            yield line
            line, used = [], 0
        line.append(_Cell(shown, columns, value))
        used += columns
        if character == "\n":
            yield line
            line, used = [], 0
    if line:
        yield line


def _style(scale: Scale, level: int) -> Style:
    color = scale.color_on_any(level)
    return Style() if color is None else Style(color=_INK, bgcolor=Color.from_rgb(*color))
