"""The places of a text that surprise a model most."""

import dataclasses
import heapq
import itertools
import math

import numpy as np

from charjax.analysis.scored_characters import Alternatives, Characters, Expected

# Of two places nearer to each other than this, in one line, only the more surprising is told of.
STRETCH = 60
# Characters shown on each side of a place.
AROUND = 36
_Stretch = tuple[int, int]  # a line, and how many stretches of it are before


@dataclasses.dataclass
class Place:
    """A surprising place.

    Attributes:
        line: counted from 1.
        column: counted from 1.
        character: what stands there.
        nats: -log p(character | all before it).
        byte: the name of the byte that surprised most, of a character that is several; else empty.
        expected: what the model held more likely, likeliest first.
        before: the text before, up to AROUND characters.
        after: the text after.
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
    """Finds the most surprising characters of a text as they come, at most one of each stretch of a line.

    A stretch ends between two words, where it has at least STRETCH characters: else one garbled line would be all that
    is told of. Memory grows with the number of places wanted alone.
    """

    def __init__(self, number: int, alternatives: Alternatives) -> None:
        self._number, self._alternatives = number, alternatives
        self._best: dict[_Stretch, Place] = {}
        self._heap: list[tuple[float, int, _Stretch, Place]] = []
        self._order = itertools.count()
        self._before = ""
        self._open: list[Place] = []

    def add(self, found: Characters) -> None:
        """Goes on with the text."""
        if not self._number:
            return
        new = found.text()
        for place in self._open:
            place.after += new[: AROUND - len(place.after)]
        text, begin = self._before + new, len(self._before)
        candidates = np.flatnonzero(found.nats > self._least())
        # The most surprising first: what comes after one that is not surprising enough is not, either.
        for index in candidates[np.argsort(-found.nats[candidates], kind="stable")].tolist():
            if found.nats[index] <= self._least():
                break
            self._consider(found, index, text, begin + index)
        self._open = [place for place in self._open if len(place.after) < AROUND]
        self._before = text[-AROUND:]

    def places(self) -> list[Place]:
        """The places, the most surprising first, and of equal ones that which comes first in the text."""
        return sorted(self._best.values(), key=lambda place: (-place.nats, place.line, place.column))

    def _least(self) -> float:
        """What a place must surpass."""
        while self._heap and self._best.get(self._heap[0][2]) is not self._heap[0][3]:
            heapq.heappop(self._heap)  # its stretch has a more surprising place by now
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
