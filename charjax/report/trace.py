"""A text with a line of marks under each of its lines, which show a number per character where there is no colour."""

from collections.abc import Iterable, Iterator

from rich.cells import cell_len

from charjax.report.names import name_character
from charjax.report.printable import printable
from charjax.report.scale import Scale

_BLOCKS, _DIGITS = "▁▂▃▄▅▆▇█", "0123456789"


def marks_for(encoding: str) -> str:
    """The marks from the lowest to the highest, of characters that an encoding has."""
    return _BLOCKS if printable(_BLOCKS, encoding) == _BLOCKS else _DIGITS


def trace(
    characters: Iterable[tuple[str, float]], scale: Scale, *, width: int, encoding: str = "utf-8"
) -> Iterator[str]:
    """Yields a text line by line, each followed by its marks.

    Args:
        characters: characters and their numbers.
        scale: the numbers that the lowest and the highest mark stand for; it is divided evenly between them.
        width: columns; longer lines are folded.
        encoding: what the terminal or file takes.
    """
    marks = marks_for(encoding)
    text, below, used = "", "", 0
    for character, value in characters:
        # Whatever has no place of its own in a line is named: tabs and line breaks too.
        shown = character if character == " " else printable(name_character(character), encoding)
        columns = cell_len(shown)
        if used and used + columns > width:
            yield text
            yield below
            text, below, used = "", "", 0
        share = (value - scale.low) / (scale.high - scale.low)
        text, used = text + shown, used + columns
        below += marks[int(min(max(share, 0.0) * len(marks), len(marks) - 1))] * columns
        if character == "\n":
            yield text
            yield below
            text, below, used = "", "", 0
    if used:
        yield text
        yield below
