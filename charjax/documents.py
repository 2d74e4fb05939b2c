"""A text that comes in pieces: cut anew, and into documents."""

from collections.abc import Iterable, Iterator

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
