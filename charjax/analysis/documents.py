"""A text that comes in pieces: cut anew, and into documents."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from charjax.errors import UserError


def regroup(pieces: Iterable[np.ndarray], window: int) -> Iterator[np.ndarray]:
    """Cuts pieces of any lengths into ones of `window`; the last may be shorter."""
    rest: list[np.ndarray] = []
    size = 0
    for piece in pieces:
        taken = 0
        while size + len(piece) - taken >= window:
            end = taken + window - size
            yield np.concatenate([*rest, piece[taken:end]])
            rest, size, taken = [], 0, end
        if taken < len(piece):
            # A copy, or the small rest would keep the whole piece in memory.
            rest.append(piece[taken:].copy())
            size += len(piece) - taken
    if rest:
        yield np.concatenate(rest)


class DocumentFinder:
    """Finds where documents begin in a text that comes in pieces: at its beginning, and after each separator.

    Separators are found from the left and do not overlap, as by `str.split`.
    """

    def __init__(self, separator: np.ndarray | None) -> None:
        """Takes the ids [m] of the separator; None for a text that is one document.

        Raises:
            UserError: an empty separator.
        """
        if separator is not None and not len(separator):
            raise UserError("the separator is empty; give at least one character")
        self._separator = separator
        self._begin = True
        # What has come since the last separator, as far as it may be the beginning of the next.
        self._tail = np.zeros(0, np.int64)

    def begins(self, ids: np.ndarray) -> np.ndarray:
        """[n] bool, which of the next characters [n] begin a document."""
        begins = np.zeros(len(ids) + 1, bool)
        begins[0] = self._begin
        if self._separator is not None:
            joined, length = np.concatenate([self._tail, ids]), len(self._separator)
            end = 0
            if len(joined) >= length:
                windows = np.lib.stride_tricks.sliding_window_view(joined, length)
                for place in np.flatnonzero((windows == self._separator[None]).all(axis=1)):
                    if place >= end:
                        end = int(place) + length
                        begins[end - len(self._tail)] = True
            self._tail = joined[max(end, len(joined) - length + 1) :]
        self._begin = bool(begins[-1])
        return begins[:-1]


class SegmentBlock(NamedTuple):
    """S consecutive segments of a text, of T labels each at most.

    A segment's labels follow one another in a document. The first character of a document is no label, since nothing
    comes before it: it stands in front of the labels of its document's first segment, which may have none.

    Attributes:
        windows: [S, T + 1] int32, the character before a segment's labels, then the labels, then zeros.
        counts: [S] int32, how many labels a segment has.
        fresh: [S] bool, whether a document begins with the window's first character.
        number: how many of the S are segments; the rest fills the block up.
        rows: [n] int64, for each character of the text that the block covers, its segment.
        columns: [n] int64, and where it stands in the window.
    """

    windows: np.ndarray
    counts: np.ndarray
    fresh: np.ndarray
    number: int
    rows: np.ndarray
    columns: np.ndarray


def segment_blocks(
    pieces: Iterable[tuple[np.ndarray, np.ndarray]], *, seq_len: int, size: int
) -> Iterator[SegmentBlock]:
    """Cuts a text that comes in pieces into segments, whatever the pieces are.

    Args:
        pieces: ids [n] and which of them begin a document [n] bool; the text's first character does.
        seq_len: T, labels per segment; only a document's last has fewer.
        size: S, segments per block.

    Yields:
        Blocks of S segments; the last may hold fewer.
    """
    # What is not cut yet: ids, and their places in their documents. In front stands the character before them.
    ids, places = np.zeros(1, np.int32), np.zeros(1, np.int64)
    for new_ids, begins in pieces:
        ids = np.concatenate([ids, new_ids.astype(np.int32)])
        places = np.concatenate([places, _places(begins, int(places[-1]) + 1)])
        # A segment is whole when the next one begins.
        starts = np.flatnonzero(_starts(places[1:], seq_len))
        begin = 0
        for end in starts[size::size].tolist():
            yield _block(ids[begin : end + 1], places[begin : end + 1], seq_len, size)
            begin = end
        ids, places = ids[begin:], places[begin:]
    if len(ids) > 1:
        yield _block(ids, places, seq_len, size)


def _places(begins: np.ndarray, first: int) -> np.ndarray:
    """Where characters stand in their documents, if the first, unless it begins one, stands at `first`."""
    numbers = np.arange(len(begins))
    return numbers - np.maximum.accumulate(np.where(begins, numbers, -first))


def _starts(places: np.ndarray, seq_len: int) -> np.ndarray:
    """Which characters are the first of a segment that is cut where they stand in their documents: 0, 1 + T, 1 + 2T."""
    return (places == 0) | ((places > 1) & ((places - 1) % seq_len == 0))


def _block(ids: np.ndarray, places: np.ndarray, seq_len: int, size: int) -> SegmentBlock:
    """Makes a block of characters and the one before them: ids [n + 1], places [n + 1]."""
    before, ids, places = ids[:-1], ids[1:], places[1:]
    starts = _starts(places, seq_len)
    rows = np.cumsum(starts) - 1
    columns = np.where(places == 0, 0, (places - 1) % seq_len + 1)
    windows = np.zeros((size, seq_len + 1), np.int32)
    # A document's first character takes the place of the one before it.
    windows[rows[starts], 0] = before[starts]
    windows[rows, columns] = ids
    counts = np.bincount(rows[places > 0], minlength=size).astype(np.int32)
    fresh = np.zeros(size, bool)
    fresh[rows[places == 0]] = True
    return SegmentBlock(windows, counts, fresh, int(rows[-1]) + 1, rows, columns)
