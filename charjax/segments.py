"""A text in segments of some characters each, none of which reaches over from one document into the next."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


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
