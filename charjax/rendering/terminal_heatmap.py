"""A text with a line of marks under each of its lines, which show a number per character where there is no colour."""

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


class Cell(NamedTuple):
    """A character in a line of a terminal.

    Attributes:
        shown: itself, or its name where it cannot be shown.
        columns: how many it takes up.
        value: its number.
    """

    shown: str
    columns: int
    value: float


def marks_for(encoding: str) -> str:
    """The marks from the lowest to the highest, of characters that an encoding has."""
    return _BLOCKS if printable(_BLOCKS, encoding) == _BLOCKS else _DIGITS


def fold(characters: Iterable[tuple[str, float]], *, width: int, encoding: str = "utf-8") -> Iterator[list[Cell]]:
    """Yields a text line by line; longer ones are folded.

    Args:
        characters: characters and their numbers.
        width: columns.
        encoding: what the terminal or file takes.
    """
    line: list[Cell] = []
    used = 0
    for character, value in characters:
        # Whatever has no place of its own in a line is named: tabs and line breaks too.
        shown = character if character == " " else printable(name_character(character), encoding)
        columns = cell_len(shown)
        if line and used + columns > width:
            yield line
            line, used = [], 0
        line.append(Cell(shown, columns, value))
        used += columns
        if character == "\n":
            yield line
            line, used = [], 0
    if line:
        yield line


def trace(
    characters: Iterable[tuple[str, float]], scale: Scale, *, width: int, encoding: str = "utf-8"
) -> Iterator[str]:
    """Yields a text line by line, each followed by its marks.

    Args:
        characters: characters and their numbers; NaN, of which nothing is known, is left without a mark.
        scale: the numbers that the lowest and the highest mark stand for; it is divided evenly between them.
        width: columns; longer lines are folded.
        encoding: what the terminal or file takes.
    """
    marks = marks_for(encoding)

    def mark(value: float) -> str:
        if math.isnan(value):
            return " "
        share = (value - scale.low) / (scale.high - scale.low)
        return marks[int(min(max(share, 0.0) * len(marks), len(marks) - 1))]

    for line in fold(characters, width=width, encoding=encoding):
        yield "".join(cell.shown for cell in line)
        yield "".join(mark(cell.value) * cell.columns for cell in line)


_INK = Color.from_rgb(*LIGHT_INK)


def has_colours(console: Console) -> bool:
    """Whether a console takes colours: a terminal that has them, or FORCE_COLOR, and no NO_COLOR."""
    return console.color_system is not None and not console.no_color


def paint(characters: Iterable[tuple[str, float]], scale: Scale, *, width: int, encoding: str) -> Iterator[Text]:
    """Yields a text line by line, painted.

    Args:
        characters: characters and their numbers; NaN, of which nothing is known, leaves one unpainted.
        scale: the colours. A terminal does not tell whether it is light or dark: painted characters bring their ink
            with them, and the others stay as the user has them.
        width: columns; longer lines are folded.
        encoding: what the terminal takes.
    """
    for line in fold(characters, width=width, encoding=encoding):
        text = Text()
        for level, cells in itertools.groupby(line, key=lambda cell: scale.level(cell.value)):
            text.append("".join(cell.shown for cell in cells), style(scale, level))
        yield text


def style(scale: Scale, level: int) -> Style:
    """How a character of a level looks."""
    colour = scale.colour_on_any(level)
    return Style() if colour is None else Style(color=_INK, bgcolor=Color.from_rgb(*colour))


def legend(scale: Scale) -> Text:
    """A line that tells what the colours stand for."""
    text = Text(f"{scale.name}: {scale.low:g} ")
    for level in range(scale.levels):
        text.append(" ", style(scale, level))
    return text.append(f" {scale.high:g}")
