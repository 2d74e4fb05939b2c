"""Splits text that arrives in pieces into equal-sized pieces, into documents, and into segments to train on."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from charjax.errors import UserError


def regroup(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroups pieces of any length into pieces of length `size`; the last may be shorter."""
    rest: list[np.ndarray] = []
    length = 0
    for piece in pieces:
        taken = 0
        while length + len(piece) - taken >= size:
            end = taken + size - length
            yield np.concatenate([*rest, piece[taken:end]])
            rest, length, taken = [], 0, end
        if taken < len(piece):
            # Copied, because a view of a few characters would keep the whole piece in memory.
            rest.append(piece[taken:].copy())
            length += len(piece) - taken
    if rest:
        yield np.concatenate(rest)


class DocumentFinder:
    """Finds where documents begin in text that arrives in pieces: at the start and after each separator.

    Separators are matched from left to right and do not overlap, as with `str.split`.
    """

    def __init__(self, separator: np.ndarray | None) -> None:
        """Takes the ids [m] of the separator, or None if the whole text is a single document.

        Raises:
            UserError: the separator is empty.
        """
        if separator is not None and not len(separator):
            raise UserError("the separator is empty; use at least one character")
        self._separator = separator
        self._begin = True
        # The characters since the last separator that could be the start of the next one.
        self._tail = np.zeros(0, np.int64)

    def begins(self, ids: np.ndarray) -> np.ndarray:
        """Returns which of the next characters [n] begin a document, [n] bool."""
        begins = np.zeros(len(ids) + 1, bool)
        begins[0] = self._begin
        if self._separator is not None:
            begins[self._separator_ends(self._separator, ids)] = True
        self._begin = bool(begins[-1])
        return begins[:-1]

    def _separator_ends(self, separator: np.ndarray, ids: np.ndarray) -> list[int]:
        """Returns the offset (1 to n) just past each separator that ends within the next characters [n]."""
        joined, length = np.concatenate([self._tail, ids]), len(separator)
        if len(joined) < length:
            self._tail = joined
            return []
        windows = np.lib.stride_tricks.sliding_window_view(joined, length)
        ends, end = [], 0
        for position in np.flatnonzero((windows == separator[None]).all(axis=1)).tolist():
            if position >= end:
                end = position + length
                ends.append(end - len(self._tail))
        self._tail = joined[max(end, len(joined) - length + 1) :]
        return ends


class SegmentBlock(NamedTuple):
    """A block of S consecutive segments of text, each with at most T labels.

    The labels of a segment are consecutive characters of one document. A document's first character is not a label,
    since nothing precedes it; it only precedes the labels, if any, of the document's first segment.

    Attributes:
        windows: [S, T + 1] int32, the character before the segment's labels, then the labels, then zeros.
        counts: [S] int32, the number of labels in each segment.
        fresh: [S] bool, whether the window's first character begins a document.
        number: how many of the S rows are segments; the rest are padding.
        rows: [n] int64, for each character that the block covers, the index of its segment.
        columns: [n] int64, for each of these characters, its position in the segment's window.
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
    """Cuts text that arrives in pieces into segments; how it is split into pieces does not matter.

    Args:
        pieces: pairs of ids [n] and begins [n] bool, where `begins` marks the characters that begin a document; the
            first character of the text must be one of them.
        seq_len: T, labels per segment; only a document's last segment has fewer.
        size: S, segments per block.

    Yields:
        Blocks of S segments; the last may have fewer.
    """
    # Ids not yet cut into segments, with their positions in their documents, after those of the last id already cut.
    ids, positions = np.zeros(1, np.int32), np.zeros(1, np.int64)
    for new_ids, begins in pieces:
        ids = np.concatenate([ids, new_ids.astype(np.int32)])
        positions = np.concatenate([positions, _positions(begins, int(positions[-1]) + 1)])
        # A segment is known to be complete once the next one begins.
        starts = np.flatnonzero(_starts(positions[1:], seq_len))
        begin = 0
        for end in starts[size::size].tolist():
            yield _block(ids[begin : end + 1], positions[begin : end + 1], seq_len, size)
            begin = end
        ids, positions = ids[begin:], positions[begin:]
    if len(ids) > 1:
        yield _block(ids, positions, seq_len, size)


def _positions(begins: np.ndarray, first: int) -> np.ndarray:
    """Returns each character's position in its document; the first is at `first`, or at 0 if it begins a document."""
    numbers = np.arange(len(begins))
    return numbers - np.maximum.accumulate(np.where(begins, numbers, -first))


def _starts(positions: np.ndarray, seq_len: int) -> np.ndarray:
    """Returns which characters begin a segment: those at 0, 1 + T, 1 + 2T, ... in their documents."""
    return (positions == 0) | ((positions > 1) & ((positions - 1) % seq_len == 0))


def _block(ids: np.ndarray, positions: np.ndarray, seq_len: int, size: int) -> SegmentBlock:
    """Builds a block of n characters; ids [n + 1] and positions [n + 1] include the character before them."""
    before, ids, positions = ids[:-1], ids[1:], positions[1:]
    starts = _starts(positions, seq_len)
    rows = np.cumsum(starts) - 1
    columns = np.where(positions == 0, 0, (positions - 1) % seq_len + 1)
    windows = np.zeros((size, seq_len + 1), np.int32)
    # A document's first character goes in column 0, replacing the preceding one.
    windows[rows[starts], 0] = before[starts]
    windows[rows, columns] = ids
    counts = np.bincount(rows[positions > 0], minlength=size).astype(np.int32)
    fresh = np.zeros(size, bool)
    fresh[rows[positions == 0]] = True
    return SegmentBlock(windows, counts, fresh, int(rows[-1]) + 1, rows, columns)
