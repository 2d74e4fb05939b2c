"""The page of `charjax score`."""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from rich.cells import cell_len

from charjax.analysis.scored_characters import Alternatives, Characters, Expected
from charjax.analysis.worst_places import AROUND, STRETCH, Place
from charjax.metrics import bits_per_char
from charjax.rendering import html_template as page_frame
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_page import PageWriter, Painted
from charjax.rendering.html_template import Places
from charjax.rendering.visible_text import name_character, printable

SCALE = Scale("surprise in bits", 0.0, 10.0, 20)
_NOTE = (
    "Each character is painted by its surprise: -log2 of the probability that the model gave it, having read all "
    "before it. 1 bit is a probability of 1/2, 10 bits are one of 1/1024. Point at a character to see what the model "
    "expected in its place."
)


class SurprisePage:
    """A page with a text painted by surprise; a context manager, which leaves nothing without `finish`."""

    def __init__(self, path: Path, alternatives: Alternatives, *, start_line: int, most: int) -> None:
        """Begins a page; errors as `PageWriter`.

        Args:
            path: the file.
            alternatives: names what was expected.
            start_line: the line to begin at.
            most: how many characters to paint at most.
        """
        self._writer = PageWriter(path, SCALE)
        self._alternatives, self._start_line, self._left = alternatives, start_line, most
        self.painted, self._last_line = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.__exit__(*exception)

    def add(self, found: Characters) -> None:
        """Goes on with the text, as far as it is wanted."""
        for part in cut([found], self._start_line, self._left):
            begins = [0, *np.flatnonzero(part.columns[1:] == 1) + 1]
            for begin, end in itertools.pairwise([*begins, len(part.points)]):
                if begin < end and (part.columns[begin] == 1 or not self.painted):
                    self._last_line = int(part.lines[begin])
                    self._writer.line(self._last_line)
                self._writer.paint(self._paint(part.part(slice(begin, end))))
                self.painted += end - begin
            self._left -= len(part.points)

    def finish(self, title: str, facts: list[tuple[str, str]], places: list[Place]) -> None:
        """Puts the page in its place, with facts and the most surprising places above the text."""
        rows = [place_on_page(place, linked=self._start_line <= place.line <= self._last_line) for place in places]
        table = Places(HEADING, ("line:column", "surprise", "probability", "in the text", "expected"), rows)
        self._writer.finish(title=title, facts=facts, note=_NOTE, places=table if rows else None)

    def _paint(self, part: Characters) -> Iterator[Painted]:
        for index, (point, bits) in enumerate(zip(part.points.tolist(), bits_of(part), strict=True)):
            yield Painted(chr(point), bits, self._tip(part, index, name_character(chr(point)), bits))

    def _tip(self, part: Characters, index: int, name: str, bits: float) -> str:
        if math.isnan(bits):
            return f"{name}  nothing is before it; it does not count"
        lines = [f"{name}  {bits:.2f} bits  {percent(2.0**-bits)}"]
        expected = self._alternatives.of(part, index)
        if expected and part.sizes[index] > 1:
            lines.append(f"in place of {self._alternatives.name(int(part.ids[index]))}:")
        return "\n".join(lines + [f"{one.name}  {percent(one.probability)}" for one in expected])


def bits_of(found: Characters) -> list[float]:
    """What each surprises by, in bits."""
    return (found.nats / math.log(2)).tolist()


def cut(found: Iterable[Characters], start_line: int, number: int) -> Iterator[Characters]:
    """Cuts `number` characters, from a line on, out of blocks; no more blocks are asked for than it takes."""
    blocks = iter(found)
    while number and (block := next(blocks, None)) is not None:
        part = block.part(slice(int((block.lines < start_line).sum()), None)).part(slice(number))
        number -= len(part.points)
        yield part


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
