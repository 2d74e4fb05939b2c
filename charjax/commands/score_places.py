"""Surprising places as `charjax score` tells of them, in the terminal and on a page."""

import math
import sys
from collections.abc import Iterator

from rich.cells import cell_len

from charjax.report import page_frame
from charjax.report.metrics import bits_per_char
from charjax.report.names import name_character
from charjax.report.printable import printable
from charjax.surprise import Expected
from charjax.worst import AROUND, STRETCH, Place

HEADING = f"The most surprising places, at most one of any {STRETCH} characters of a line"


def rows_of_places(places: list[Place]) -> Iterator[str]:
    """A table: each place, what was expected there, and below it the text around, with a mark under the character."""
    at = [f"{place.line}:{place.column}" for place in places]
    width = max(len("line:column"), *map(len, at))
    yield f"{'line:column':<{width}}   bits  probability  what    expected"
    for where, place in zip(at, places, strict=True):
        bits = bits_per_char(place.nats)
        name = shown(place.character)
        start = (
            f"{where:<{width}}  {bits:>5.2f}  {percent(math.exp(-place.nats)):>11}  {name}{' ' * (6 - cell_len(name))}"
        )
        yield f"{start}  {expectations(place.expected, place.byte)}".rstrip()
        before, after = shown(place.before)[::-1], shown(place.after)
        before = _cut(before, AROUND)[::-1]
        yield f"    {before}{name}{_cut(after, AROUND)}"
        yield f"    {' ' * cell_len(before)}{'^' * max(1, cell_len(name))}"


def place_on_page(place: Place, *, linked: bool) -> page_frame.Place:
    """A place as a page shows it, with a link to its line where that is on the page."""
    bits = bits_per_char(place.nats)
    return page_frame.Place(
        place.line if linked else None,
        f"{place.line}:{place.column}",
        (f"{bits:.2f} bits", percent(math.exp(-place.nats))),
        _cut(_named(place.before)[::-1], AROUND // 2)[::-1],
        _named(place.character),
        bits,
        _cut(_named(place.after), AROUND // 2),
        expectations(place.expected, place.byte),
    )


def expectations(expected: list[Expected], byte: str) -> str:
    """What was expected, in a line; of a character of several bytes in place of which of them."""
    names = "  ".join(f"{one.name} {percent(one.probability)}" for one in expected)
    return f"in place of {byte}: {names}" if byte and names else names


def percent(probability: float) -> str:
    """A probability with three digits that count."""
    return f"{100 * probability:.3g}%" if probability >= 1e-5 else f"{100 * probability:.1e}%"


def shown(text: str) -> str:
    """Text in one line of standard output, whatever is in it."""
    encoding = (sys.stdout.encoding if sys.stdout.isatty() else None) or "utf-8"
    return printable(_named(text), encoding)


def _named(text: str) -> str:
    return "".join(c if c == " " else name_character(c) for c in text)


def _cut(text: str, most: int) -> str:
    """As much of a text as some columns hold; names of characters, and wide ones, take several."""
    columns = 0
    for place, character in enumerate(text):
        columns += cell_len(character)
        if columns > most:
            return text[:place]
    return text
