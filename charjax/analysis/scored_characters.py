"""Per-character scores: how surprising each character is, what was expected instead, and the loss of the whole text."""

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

# The minimum number of ids to process together.
BLOCK = 4096
_NEWLINE = ord("\n")


class Characters(NamedTuple):
    """Consecutive characters of the text and their scores; with a byte vocabulary, a character may have multiple ids.

    Attributes:
        points: [n] uint32, code points, decoded as with `errors="surrogateescape"`.
        lines: [n] int64, one-based line numbers.
        columns: [n] int64, one-based columns, in characters.
        begins: [n] bool, whether a document begins here.
        nats: [n] float64, -log p(character | those before it in its document); NaN if nothing precedes it.
        counted: [n] int64, the number of ids that `nats` sums over: all but the first of a document.
        sizes: [n] int64, the number of ids in the character.
        ids: [n] int64, the character's most surprising id.
        top_ids: [n, K] int32, the most likely ids at the position of that id; see `ScoredPiece`.
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
        """Returns a slice of the characters."""
        return Characters(*(values[part] for values in self))

    def text(self) -> str:
        """Returns the characters as a string."""
        return self.points.tobytes().decode("utf-32-le", errors="surrogatepass")


def characters(vocab: Vocab, scored: Iterable[ScoredPiece]) -> Iterator[Characters]:
    """Yields the characters of the scored text in blocks whose size does not depend on its length.

    Raises:
        UserError: scores are not finite because training diverged.
    """
    decoder, line, column = CharacterDecoder(vocab), 1, 1
    waiting: list[ScoredPiece] = []
    for piece in itertools.chain(_blocks(scored), [None]):
        if piece is not None:
            if not np.isfinite(piece.nats).all():
                raise UserError("the model's predictions are not finite; train the model again")
            waiting.append(piece)
        points, sizes = decoder.decode(np.zeros(0, np.uint8) if piece is None else piece.ids, final=piece is None)
        if not len(points):
            continue
        whole, used = _joined(waiting), int(sizes.sum())
        now, waiting = ScoredPiece(*(v[:used] for v in whole)), [ScoredPiece(*(v[used:] for v in whole))]
        lines, columns = _lines_and_columns(points, line, column)
        ends_line = points[-1] == _NEWLINE
        line, column = int(lines[-1]) + int(ends_line), 1 if ends_line else int(columns[-1]) + 1
        yield _characters(now, points, sizes, lines, columns)


def _blocks(scored: Iterable[ScoredPiece]) -> Iterator[ScoredPiece]:
    """Joins small pieces, for which the overhead per piece would outweigh the actual work."""
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


def _lines_and_columns(points: np.ndarray, line: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lines and columns of the characters, given the line and column of the first one."""
    breaks = points == _NEWLINE
    after_break = np.concatenate([[False], breaks[:-1]])
    at = np.arange(len(points))
    line_starts = np.maximum.accumulate(np.where(after_break, at, 1 - column))
    return line + np.cumsum(after_break), at - line_starts + 1


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
    """Returns the offset of the maximum within each group; ties go to the first."""
    largest = np.repeat(np.maximum.reduceat(values, starts), sizes)
    found = np.flatnonzero(values == largest)
    groups, first = np.unique(np.repeat(np.arange(len(starts)), sizes)[found], return_index=True)
    return found[first] - starts[groups]


class Expected(NamedTuple):
    """The name of a likely character (or byte) and its probability."""

    name: str
    probability: float


class Alternatives:
    """The characters that the model considered most likely, other than the actual one."""

    def __init__(self, vocab: Vocab, top: int) -> None:
        """Prepares up to `top` alternatives; needs K > `top`, as the actual character may be one of the K."""
        self._top = top
        bytes_above = 0xDC00 if vocab.kind == "bytes" else 0
        self._names = [name_character(chr(c if c < 0x80 else c + bytes_above)) for c in vocab.codes().tolist()]

    def of(self, found: Characters, index: int) -> list[Expected]:
        """Returns the most likely alternatives at an index, in order of decreasing probability."""
        ids, probs, itself = found.top_ids[index].tolist(), found.top_probs[index].tolist(), int(found.ids[index])
        others = [(i, p) for i, p in zip(ids, probs, strict=True) if i != itself]
        return [Expected(self._names[i], p) for i, p in others[: self._top]]

    def name(self, number: int) -> str:
        """Returns the name of the character or byte with a given id."""
        return self._names[number]


class Totals:
    """Running totals over the text.

    Attributes:
        characters: the number of characters.
        documents: the number of documents.
        ids: the number of ids, which may exceed the number of characters with a byte vocabulary.
        bytes: the size in UTF-8.
        counted: the number of ids that are not the first of their document.
        counted_characters: the number of characters with at least one such id.
        counted_bytes: the size of the counted ids in bytes.
        nats: the total nats of the counted ids.
    """

    def __init__(self) -> None:
        self.characters = self.documents = self.ids = self.bytes = 0
        self.counted = self.counted_characters = self.counted_bytes = 0
        self.nats = 0.0

    def add(self, found: Characters) -> None:
        """Adds the next characters."""
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
        """Nats per id (a character, or a byte with a byte vocabulary); NaN if no id is counted."""
        return self.nats / self.counted if self.counted else math.nan
