"""Builds the report of `charjax score`: facts, a table of the most surprising places, and a page."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.cells import cell_len

from charjax.analysis.scored_characters import Alternatives, Characters, Expected, Totals
from charjax.analysis.worst_places import AROUND, STRETCH, Place
from charjax.cli.arguments import ScoreCommand
from charjax.cli.output import Facts, stdout_encoding
from charjax.errors import UserError
from charjax.metrics import bits_per_char, perplexity
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_page import PageWriter, Painted
from charjax.rendering.html_template import Curve, Excerpt, ExcerptTable
from charjax.rendering.visible_text import name_character, printable

SCALE = Scale("surprise in bits", 0.0, 10.0, 20)
HEADING = f"The most surprising places, at most one per {STRETCH} characters of a line"
# Number of points in the surprise curve.
_POINTS = 400
_NOTE = (
    "The color of each character shows its surprise: -log2 of the probability that the model gave it after reading "
    "everything before it. 1 bit means a probability of 1/2, 10 bits mean 1/1024. Hover over a character, or tap "
    "it, to see what the model expected instead."
)


def character_facts(command: ScoreCommand, totals: Totals) -> Facts:
    """Returns the numbers of characters and documents.

    Raises:
        UserError: no character is counted.
    """
    if not totals.counted:
        raise UserError(f"every character of {command.text} begins a document; choose another --separator")
    if command.separator is None:
        return [("characters", f"{totals.characters:,}; the first does not count")]
    uncounted = f"the {totals.ids - totals.counted:,} that begin a document do not count"
    return [("characters", f"{totals.characters:,}; {uncounted}"), ("documents", f"{totals.documents:,}")]


def loss_facts(totals: Totals, *, bytewise: bool, static_nats: float | None = None) -> Facts:
    """Returns the loss per vocabulary character, as measured by `charjax eval`, and the figures derived from it.

    Args:
        totals: the sums over the text.
        bytewise: whether the vocabulary is bytes.
        static_nats: the loss with fixed weights, to be shown next to the loss with updated weights.
    """
    unit, other, others = "char", "byte", totals.counted_bytes
    if bytewise:
        unit, other, others = "byte", "char", totals.counted_characters
    facts = _loss_facts(totals.nats, totals.counted, others, unit, other)
    if static_nats is not None:
        static = _loss_facts(static_nats, totals.counted, others, unit, other)
        facts = [(name, f"{value}, static {before}") for (name, value), (_, before) in zip(facts, static, strict=True)]
    return facts if totals.counted_bytes != totals.counted_characters else facts[:-1]


def json_report(
    command: ScoreCommand, totals: Totals, static_nats: float | None, places: Iterable[Place]
) -> dict[str, Any]:
    """Returns the report's contents for JSON; loss and nats are per vocabulary id, i.e. per byte for bytes."""
    loss, static = totals.nats / totals.counted, static_nats and static_nats / totals.counted
    counts = {name: getattr(totals, name) for name in ("characters", "documents", "bytes", "counted")}
    measured = {"loss": loss, "perplexity": perplexity(loss), "bits_per_char": bits_per_char(loss)}
    worst = [{**vars(place), "expected": [one._asdict() for one in place.expected]} for place in places]
    return {
        "run": str(command.run),
        "text": str(command.text),
        **counts,
        **measured,
        "static_loss": static,
        "worst": worst,
    }


def _loss_facts(nats: float, counted: int, others: int, unit: str, other: str) -> Facts:
    loss = nats / counted
    return [
        ("loss", f"{loss:.6f} nats/{unit}"),
        ("perplexity", f"{perplexity(loss):.4f}"),
        (f"bits/{unit}", f"{bits_per_char(loss):.4f}"),
        (f"bits/{other}", f"{bits_per_char(nats / others):.4f}"),
    ]


def colored_part(start_line: int, number: int, characters: int) -> str:
    """Describes how much of the text is colored."""
    if number == characters:
        return "all characters"
    return f"{number:,} of {characters:,} characters, from line {start_line:,} on"


def bits_of(found: Characters) -> list[float]:
    """Returns the surprise of each character in bits."""
    return (found.nats / math.log(2)).tolist()


def excerpt(found: Iterable[Characters], start_line: int, number: int) -> Iterator[Characters]:
    """Yields `number` characters, beginning at the start of a line; consumes no more blocks than necessary."""
    blocks = iter(found)
    while number and (block := next(blocks, None)) is not None:
        part = block.part(slice(int((block.lines < start_line).sum()), None)).part(slice(number))
        number -= len(part.points)
        yield part


def table_of_places(places: list[Place]) -> Iterator[str]:
    """Yields the lines of a table: each place, what was expected, and below them the surrounding text with a caret."""
    positions = [f"{place.line}:{place.column}" for place in places]
    width = max(len("line:column"), *map(len, positions))
    yield f"{'line:column':<{width}}   bits  probability  what    expected"
    for position, place in zip(positions, places, strict=True):
        bits, probability = bits_per_char(place.nats), _percent(math.exp(-place.nats))
        name = _for_stdout(place.character)
        start = f"{position:<{width}}  {bits:>5.2f}  {probability:>11}  {name}{' ' * (6 - cell_len(name))}"
        yield f"{start}  {_expectations(place.expected, place.byte)}".rstrip()
        before = _shorten(_for_stdout(place.before)[::-1], AROUND)[::-1]
        yield f"    {before}{name}{_shorten(_for_stdout(place.after), AROUND)}"
        yield f"    {' ' * cell_len(before)}{'^' * max(1, cell_len(name))}"


class SurprisePage:
    """A page of text colored by surprise; a context manager that leaves no file unless `finish` is called."""

    def __init__(self, path: Path, alternatives: Alternatives, *, start_line: int, most: int, size: int) -> None:
        """Starts a page; raises the same errors as `PageWriter`.

        Args:
            path: the file.
            alternatives: names what was expected.
            start_line: first line to color.
            most: maximum number of characters to color.
            size: number of ids in the text, for the curve.
        """
        self._writer = PageWriter(path, SCALE, bits=True)
        self._size, self._read = size, 0
        self._sums = np.zeros((2, min(_POINTS, size)), np.float64)
        self._alternatives, self._start_line, self._left = alternatives, start_line, most
        self.colored, self._last_line = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.__exit__(*exception)

    def add(self, found: Characters) -> None:
        """Appends the next part of the text, as far as it should be colored, and adds it to the curve."""
        self._measure(found)
        for part in excerpt([found], self._start_line, self._left):
            begins = [0, *np.flatnonzero(part.columns[1:] == 1) + 1]
            for begin, end in itertools.pairwise([*begins, len(part.points)]):
                if begin < end and (part.columns[begin] == 1 or not self.colored):
                    self._last_line = int(part.lines[begin])
                    self._writer.line(self._last_line)
                self._writer.paint(self._paint(part.part(slice(begin, end))))
                self.colored += end - begin
            self._left -= len(part.points)

    def finish(self, title: str, facts: Facts, places: list[Place]) -> None:
        """Writes the file, with facts and the most surprising places above the text."""
        rows = [_excerpt_of(place, linked=self._start_line <= place.line <= self._last_line) for place in places]
        columns = ("line:column", "surprise", "probability", "in the text", "expected")
        table = ExcerptTable(HEADING, columns, rows) if rows else None
        stretch = -(-self._size // len(self._sums[0]))
        curve = Curve(f"Surprise along the text in bits, averaged over stretches of {stretch:,}", self._means())
        self._writer.finish(title=title, facts=facts, note=_NOTE, excerpts=table, curve=curve)

    def _measure(self, found: Characters) -> None:
        """Adds characters to the sums from which the curve is computed."""
        ends = self._read + np.cumsum(found.sizes)
        self._read += int(found.sizes.sum())
        points, counts = (ends - 1) * len(self._sums[0]) // self._size, found.counted > 0
        np.add.at(self._sums[0], points[counts], found.nats[counts] / math.log(2))
        np.add.at(self._sums[1], points[counts], 1)

    def _means(self) -> list[float]:
        sums, counts = self._sums.tolist()
        return [bits / count if count else math.nan for bits, count in zip(sums, counts, strict=True)]

    def _paint(self, part: Characters) -> Iterator[Painted]:
        for index, (point, bits) in enumerate(zip(part.points.tolist(), bits_of(part), strict=True)):
            expected = self._alternatives.of(part, index)
            several = bool(expected) and part.sizes[index] > 1
            byte = self._alternatives.name(int(part.ids[index])) if several else ""
            yield Painted(chr(point), bits, expected, byte)


def _excerpt_of(place: Place, *, linked: bool) -> Excerpt:
    bits = bits_per_char(place.nats)
    return Excerpt(
        place.line if linked else None,
        f"{place.line}:{place.column}",
        (f"{bits:.2f} bits", _percent(math.exp(-place.nats))),
        _shorten(_named(place.before)[::-1], AROUND // 2)[::-1],
        _named(place.character),
        bits,
        _shorten(_named(place.after), AROUND // 2),
        _expectations(place.expected, place.byte),
    )


def _expectations(expected: list[Expected], byte: str) -> str:
    """Lists what was expected; for a multi-byte character, also names the byte that it was expected instead of."""
    names = "  ".join(f"{one.name} {_percent(one.probability)}" for one in expected)
    return f"instead of {byte}: {names}" if byte and names else names


def _percent(probability: float) -> str:
    """Formats a probability with three significant digits."""
    return f"{100 * probability:.3g}%" if probability >= 1e-5 else f"{100 * probability:.1e}%"


def _for_stdout(text: str) -> str:
    """Makes any text safe to show on one line of standard output."""
    return printable(_named(text), stdout_encoding())


def _named(text: str) -> str:
    return "".join(c if c == " " else name_character(c) for c in text)


def _shorten(text: str, most: int) -> str:
    """Truncates text to at most `most` columns; a wide character or the name of a character takes several."""
    columns = 0
    for place, character in enumerate(text):
        columns += cell_len(character)
        if columns > most:
            return text[:place]
    return text
