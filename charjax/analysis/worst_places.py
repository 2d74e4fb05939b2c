"""The most surprising characters in the text."""

import dataclasses
import heapq
import itertools
import math

import numpy as np

from charjax.analysis.scored_characters import Alternatives, Characters, Expected

# The minimum length of a stretch of a line; only the most surprising place in each stretch is reported.
STRETCH = 60
# Characters shown on each side of a place.
AROUND = 36
_Stretch = tuple[int, int]  # a line, and the index of the stretch within it


@dataclasses.dataclass
class Place:
    """A surprising character and its context.

    Attributes:
        line: the line number, one-based.
        column: the column, one-based.
        character: the character.
        nats: -log p(character | all before it).
        byte: the name of the most surprising byte in a multi-byte character, otherwise empty.
        expected: the most likely other characters, in order of decreasing probability.
        before: up to AROUND characters before it.
        after: up to AROUND characters after it.
    """

    line: int
    column: int
    character: str
    nats: float
    byte: str
    expected: list[Expected]
    before: str
    after: str


class WorstPlaces:
    """Finds the most surprising characters of text that arrives in blocks, at most one per stretch of a line.

    A stretch is at least STRETCH characters long and ends between words. Without this limit, a single garbled line
    could fill the whole report. Memory use grows only with the number of places requested.
    """

    def __init__(self, number: int, alternatives: Alternatives) -> None:
        self._number, self._alternatives = number, alternatives
        self._best: dict[_Stretch, Place] = {}
        self._heap: list[tuple[float, int, _Stretch, Place]] = []
        self._order = itertools.count()
        self._before = ""
        self._open: list[Place] = []

    def add(self, found: Characters) -> None:
        """Adds the next characters."""
        if not self._number:
            return
        new = found.text()
        for place in self._open:
            place.after += new[: AROUND - len(place.after)]
        text, begin = self._before + new, len(self._before)
        candidates = np.flatnonzero(found.nats > self._least())
        # Most surprising first, so once a candidate is not surprising enough, neither are the rest.
        for index in candidates[np.argsort(-found.nats[candidates], kind="stable")].tolist():
            if found.nats[index] <= self._least():
                break
            self._consider(found, index, text, begin + index)
        self._open = [place for place in self._open if len(place.after) < AROUND]
        self._before = text[-AROUND:]

    def places(self) -> list[Place]:
        """Returns the places, most surprising first; ties are in text order."""
        return sorted(self._best.values(), key=lambda place: (-place.nats, place.line, place.column))

    def _least(self) -> float:
        """Returns the number of nats that a new place must exceed."""
        while self._heap and self._best.get(self._heap[0][2]) is not self._heap[0][3]:
            heapq.heappop(self._heap)  # a more surprising place has been found in its stretch
        return self._heap[0][0] if len(self._best) == self._number else -math.inf

    def _consider(self, found: Characters, index: int, text: str, at: int) -> None:
        before = text[max(0, at - AROUND) : at]
        line, column = int(found.lines[index]), int(found.columns[index])
        word = len(before) - max(before.rfind(space) for space in " \t\n") - 1
        key = line, max(0, column - 1 - word) // STRETCH
        nats = float(found.nats[index])
        if key in self._best and self._best[key].nats >= nats:
            return
        several = found.sizes[index] > 1
        place = Place(
            line,
            column,
            chr(int(found.points[index])),
            nats,
            self._alternatives.name(int(found.ids[index])) if several else "",
            self._alternatives.of(found, index),
            before,
            text[at + 1 : at + 1 + AROUND],
        )
        self._best[key] = place
        self._open.append(place)
        heapq.heappush(self._heap, (nats, -next(self._order), key, place))
        if len(self._best) > self._number:
            self._least()
            *_, key, _ = heapq.heappop(self._heap)
            del self._best[key]
