"""Hand-written text features (quotes, nesting, etc.) to correlate hidden units with."""

from typing import Any, NamedTuple

import numpy as np

from charjax.data.vocab import Vocab

_OPENING_OF = {")": "(", "]": "[", "}": "{"}
_OPENING = frozenset(_OPENING_OF.values())
_ENDS_SENTENCE = frozenset(".!?")
_INSIDE_WORDS = frozenset("_'\u2019")
# Stands in for each byte of a multi-byte character: a single byte does not identify the character, and most of these
# characters are letters.
_SOME_LETTER = "\u00e9"


class Feature(NamedTuple):
    """A number computed at each character of the text from that character and those before it.

    Attributes:
        name: the name of the feature.
        meaning: what it measures.
        most: the largest value, 1 for a binary feature. Larger values are clipped, because a few lines indented by a
            hundred spaces would otherwise dominate a correlation.
    """

    name: str
    meaning: str
    most: int


FEATURES = (
    Feature("quotes", 'inside " "', 1),
    Feature("parentheses", "inside ( )", 1),
    Feature("brackets", "inside [ ]", 1),
    Feature("nesting", "how many of ( [ { are open", 5),
    Feature("line-position", "characters into the line", 100),
    Feature("first-line", "the line after an empty one", 1),
    Feature("indentation", "white space at line start", 20),
    Feature("sentence-position", "characters since . ! or ?", 200),
    Feature("word-position", "characters into the word", 15),
    Feature("capitalised", "in a word like This", 1),
    Feature("capitals", "in a word like THIS", 1),
    Feature("digits", "at a digit", 1),
)


class FeatureReader:
    """Computes `FEATURES` after each character of the text, which may arrive in pieces.

    An empty line closes quotes, ( and [, so that one left open by mistake does not last to the end of the text.
    """

    def __init__(self, vocab: Vocab) -> None:
        """Starts reading text encoded with `vocab`."""
        longer = vocab.kind == "bytes"
        self._characters = [_SOME_LETTER if longer and code > 127 else chr(code) for code in vocab.codes().tolist()]
        self._line = self._sentence = self._word = self._indent = 0
        self._only_indent = self._first_line = True
        self._quoted = self._capitalised = self._capitals = False
        self._open: list[str] = []

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Reads the next ids [N] -> [F, N] float32, in the order of `FEATURES`."""
        characters = self._characters
        rows = np.array([self._follow(characters[number]) for number in ids.tolist()], np.float32)
        most = np.array([feature.most for feature in FEATURES], np.float32)
        return np.minimum(rows.reshape(len(ids), len(FEATURES)), most[None]).T

    def _follow(self, character: str) -> tuple[Any, ...]:
        if character == "\n":
            self._end_line()
        elif character != "\r":
            self._line += 1
            self._only_indent = self._only_indent and character in " \t"
            self._indent += self._only_indent
        self._follow_marks(character)
        self._follow_word(character)
        self._sentence = 0 if character in _ENDS_SENTENCE else self._sentence + 1
        return (
            self._quoted,
            "(" in self._open,
            "[" in self._open,
            len(self._open),
            self._line,
            self._first_line,
            self._indent,
            self._sentence,
            self._word,
            self._word > 0 and self._capitalised,
            self._word > 0 and self._capitals,
            character.isdigit(),
        )

    def _end_line(self) -> None:
        empty = self._line == 0
        if empty:
            self._quoted = False
            self._open = [opening for opening in self._open if opening == "{"]
        self._first_line = empty
        self._line = self._indent = 0
        self._only_indent = True

    def _follow_marks(self, character: str) -> None:
        if character == '"':
            self._quoted = not self._quoted
        elif character in "\u201c\u201d":
            self._quoted = character == "\u201c"
        elif character in _OPENING:
            self._open.append(character)
        elif _OPENING_OF.get(character) in self._open:
            # This also closes any inner brackets that were left open.
            while self._open.pop() != _OPENING_OF[character]:
                pass

    def _follow_word(self, character: str) -> None:
        if not (character.isalnum() or (character in _INSIDE_WORDS and (self._word or character == "_"))):
            self._word = 0
            return
        self._word += 1
        if self._word == 1:
            self._capitalised = self._capitals = character.isupper()
        self._capitals = self._capitals and (character.isupper() or not character.isalpha())
