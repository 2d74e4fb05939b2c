"""A scored text as characters: how much each surprises, what was expected in its place, and the loss of all."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from charjax.analysis.score import ScoredPiece
from charjax.data.character_decoder import CharacterDecoder, utf8_sizes
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.rendering.visible_text import name_character

# Ids that are looked at together.
BLOCK = 4096
_NEWLINE = ord("\n")


class Characters(NamedTuple):
    """Some consecutive characters of a text and what a model made of each; with bytes, one may be of several ids.

    Attributes:
        points: [n] uint32, code points, as `errors="surrogateescape"` decodes them.
        lines: [n] int64, counted from 1.
        columns: [n] int64, characters from the beginning of the line, counted from 1.
        begins: [n] bool, where a document begins.
        nats: [n] float64, -log p(character | those before it in its document), NaN where there is none before it.
        counted: [n] int64, how many ids `nats` is the sum of: all but a document's first.
        sizes: [n] int64, how many ids there are.
        ids: [n] int64, of each character's ids the one that surprised most.
        top_ids: [n, K] int32, what the model held most likely in its place; see `ScoredPiece`.
        top_probs: [n, K] float32, their probabilities.
    """

    points: np.ndarray
    lines: np.ndarray
    columns: np.ndarray
    begins: np.ndarray
    nats: np.ndarray
    counted: np.ndarray
    sizes: np.ndarray
    ids: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray

    def part(self, part: slice) -> "Characters":
        """Some of them."""
        return Characters(*(values[part] for values in self))

    def text(self) -> str:
        """The characters as a string."""
        return self.points.tobytes().decode("utf-32-le", errors="surrogatepass")


def characters(vocab: Vocab, scored: Iterable[ScoredPiece]) -> Iterator[Characters]:
    """Puts scored pieces of a text together to characters, in blocks that do not grow with it.

    Raises:
        UserError: scores that are not numbers, of a model that went wrong.
    """
    decoder, line, column = CharacterDecoder(vocab), 1, 1
    held: list[ScoredPiece] = []
    for piece, final in itertools.chain(((piece, False) for piece in _blocks(scored)), [(None, True)]):
        if piece is not None and not np.isfinite(piece.nats).all():
            raise UserError("the model's predictions are not numbers; train it anew")
        new = np.zeros(0, np.uint8) if piece is None else piece.ids
        points, sizes = decoder.decode(new, final=final)
        held += [] if piece is None else [piece]
        if not len(points):
            continue
        whole, used = _joined(held), int(sizes.sum())
        now, held = ScoredPiece(*(v[:used] for v in whole)), [ScoredPiece(*(v[used:] for v in whole))]
        lines, columns = _places(points, line, column)
        ends_line = points[-1] == _NEWLINE
        line, column = int(lines[-1]) + int(ends_line), 1 if ends_line else int(columns[-1]) + 1
        yield _characters(now, points, sizes, lines, columns)


def _blocks(scored: Iterable[ScoredPiece]) -> Iterator[ScoredPiece]:
    """Joins small pieces: what is done per piece costs more than what is done per character."""
    some: list[ScoredPiece] = []
    for piece in scored:
        some.append(piece)
        if sum(len(each.ids) for each in some) >= BLOCK:
            yield _joined(some)
            some = []
    if some:
        yield _joined(some)


def _joined(some: list[ScoredPiece]) -> ScoredPiece:
    return some[0] if len(some) == 1 else ScoredPiece(*map(np.concatenate, zip(*some, strict=True)))


def _places(points: np.ndarray, line: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Lines and columns of characters whose first stands at a line and column."""
    breaks = points == _NEWLINE
    after_break = np.concatenate([[False], breaks[:-1]])
    at = np.arange(len(points))
    beginning = np.maximum.accumulate(np.where(after_break, at, 1 - column))
    return line + np.cumsum(after_break), at - beginning + 1


def _characters(
    piece: ScoredPiece, points: np.ndarray, sizes: np.ndarray, lines: np.ndarray, columns: np.ndarray
) -> Characters:
    nats = np.where(piece.begins, 0.0, piece.nats.astype(np.float64))
    starts = np.cumsum(sizes) - sizes
    counted = np.add.reduceat((~piece.begins).astype(np.int64), starts)
    sums = np.where(counted > 0, np.add.reduceat(nats, starts), math.nan)
    most = starts + _first_largest(np.where(piece.begins, -1.0, nats), starts, sizes)
    begins = np.logical_or.reduceat(piece.begins, starts)
    ids = piece.ids[most].astype(np.int64)
    return Characters(
        points, lines, columns, begins, sums, counted, sizes, ids, piece.top_ids[most], piece.top_probs[most]
    )


def _first_largest(values: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Where in each group, counted from its start, its largest value stands first."""
    largest = np.repeat(np.maximum.reduceat(values, starts), sizes)
    places = np.flatnonzero(values == largest)
    groups, first = np.unique(np.repeat(np.arange(len(starts)), sizes)[places], return_index=True)
    return places[first] - starts[groups]


class Expected(NamedTuple):
    """A character, or a byte of one, that a model held likely, as its name, and the probability."""

    name: str
    probability: float


class Alternatives:
    """Names what a model held most likely in the place of a character."""

    def __init__(self, vocab: Vocab, top: int) -> None:
        """Takes the vocabulary and how many to name; the scores must tell one more, for the character itself."""
        self._top = top
        bytes_above = 0xDC00 if vocab.kind == "bytes" else 0
        self._names = [name_character(chr(c if c < 0x80 else c + bytes_above)) for c in vocab.codes().tolist()]

    def of(self, found: Characters, place: int) -> list[Expected]:
        """The likeliest others at one place, likeliest first."""
        ids, probs, itself = found.top_ids[place].tolist(), found.top_probs[place].tolist(), int(found.ids[place])
        others = [(i, p) for i, p in zip(ids, probs, strict=True) if i != itself]
        return [Expected(self._names[i], p) for i, p in others[: self._top]]

    def name(self, number: int) -> str:
        """The name of an id."""
        return self._names[number]


class Totals:
    """Counts a text as its characters come.

    Attributes:
        characters: how many.
        documents: how many.
        ids: of the vocabulary; with bytes more than characters.
        bytes: in UTF-8.
        counted: ids that have something before them in their document.
        counted_characters: characters with such an id.
        counted_bytes: their bytes.
        nats: the sum over all that count.
    """

    def __init__(self) -> None:
        self.characters = self.documents = self.ids = self.bytes = 0
        self.counted = self.counted_characters = self.counted_bytes = 0
        self.nats = 0.0

    def add(self, found: Characters) -> None:
        """Goes on with the text."""
        sizes, counts = utf8_sizes(found.points), found.counted > 0
        self.characters += len(found.points)
        self.documents += int(found.begins.sum())
        self.ids += int(found.sizes.sum())
        self.bytes += int(sizes.sum())
        self.counted += int(found.counted.sum())
        self.counted_characters += int(counts.sum())
        self.counted_bytes += int(np.where(found.sizes > 1, found.counted, sizes)[counts].sum())
        self.nats += float(np.nansum(found.nats))

    @property
    def loss(self) -> float:
        """Nats per id, which is a character, or with bytes a byte; NaN where none counts."""
        return self.nats / self.counted if self.counted else math.nan
