"""A text painted in a terminal, each character on the colour of a number."""

import itertools
from collections.abc import Iterable, Iterator

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from charjax.report.scale import LIGHT_INK, Scale
from charjax.report.trace import fold

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
