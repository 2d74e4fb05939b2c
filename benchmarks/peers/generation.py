"""What a peer that generates is to its worker process: it is set up, checked and timed."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Sample = Callable[[int, int], np.ndarray]
"""(length, seed) -> ids [B, length]; reads the context again in every call."""
Logits = Callable[[np.ndarray], np.ndarray]
"""ids [B, T] -> logits [B, V] of the character after them."""

LEAST_FIRSTS, MOST_FIRSTS = 2, 7


class Generator:
    """A peer that generates texts of one length."""

    def __init__(self, sample: Sample, logits: Logits, length: int) -> None:
        self._sample, self._logits, self._length = sample, logits, length

    def logits(self, ids: list[list[int]]) -> dict[str, Any]:
        """Returns the logits after a given text."""
        return {"logits": self._logits(np.asarray(ids, np.int32)).tolist()}

    def ids(self, seed: int) -> dict[str, Any]:
        """Returns the ids of sampled texts."""
        return {"ids": self._sample(self._length, seed).tolist()}

    def time(self, seconds: float) -> dict[str, float]:
        """Times a few texts of one character, and as many whole ones as take so many seconds.

        Returns:
            The medians "first_seconds" and "text_seconds"; the first is what a text takes besides its steps.
        """
        first = [self._seconds(1, 0)]
        while len(first) < LEAST_FIRSTS or (len(first) < MOST_FIRSTS and sum(first) < seconds / 4):
            first.append(self._seconds(1, len(first)))
        texts = [self._seconds(self._length, 0)]
        while sum(texts) + texts[-1] / 2 < seconds:
            texts.append(self._seconds(self._length, len(texts)))
        return {"first_seconds": statistics.median(first), "text_seconds": statistics.median(texts)}

    def compile_seconds(self) -> float:
        """Runs all that is timed once more than needed, and returns what the first call took beyond the second."""
        cold, warm = (self._seconds(self._length, 0) for _ in range(2))
        self._seconds(1, 0)
        return cold - warm

    def _seconds(self, length: int, seed: int) -> float:
        start = time.perf_counter()
        self._sample(length, seed)
        return time.perf_counter() - start


def start(sample: Sample, logits: Logits, length: int, **about: Any) -> tuple[Generator, dict[str, Any]]:
    """Returns a peer that has compiled all it needs, and what is known about it."""
    peer = Generator(sample, logits, length)
    return peer, {"compile_seconds": peer.compile_seconds(), **about}
