"""The page of `charjax score`."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from charjax.commands.score_places import HEADING, percent, place_on_page
from charjax.report.names import name_character
from charjax.report.page import PageWriter, Painted
from charjax.report.page_frame import Places
from charjax.report.scale import Scale
from charjax.surprise import Alternatives, Characters
from charjax.worst import Place

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
