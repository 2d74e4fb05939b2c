"""Characters and their ids."""

import dataclasses
from typing import Any, Literal

import numpy as np

from charjax.errors import UserError

Kind = Literal["ascii", "chars", "bytes"]

# Text is encoded and decoded so many characters at a time, so that its UTF-32 form never stands in memory whole.
CHUNK = 1 << 20
_SHOWN_AT_MOST = 5


@dataclasses.dataclass(frozen=True)
class Vocab:
    """An alphabet: which id stands for which character.

    Attributes:
        kind: "ascii" (ids are the 128 ASCII codes), "chars" (positions in `characters`) or "bytes" (UTF-8 bytes).
        characters: for "chars", the distinct characters in the order of their code points; else empty.
    """

    kind: Kind
    characters: str = ""

    def __post_init__(self) -> None:
        if self.characters != "".join(sorted(set(self.characters))):
            raise UserError("the vocabulary's characters must be distinct and in the order of their code points")

    @classmethod
    def ascii(cls) -> "Vocab":
        """The 128 ASCII characters."""
        return cls("ascii")

    @classmethod
    def from_text(cls, text: str) -> "Vocab":
        """The distinct characters of a text."""
        return cls("chars", "".join(sorted(set(text))))

    @classmethod
    def bytes(cls) -> "Vocab":
        """The 256 bytes, which any text or file is made of."""
        return cls("bytes")

    @property
    def size(self) -> int:
        """Number of ids."""
        return {"ascii": 128, "bytes": 256}.get(self.kind) or len(self.characters)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer that holds every id."""
        return np.min_scalar_type(max(self.size - 1, 0))

    def unknown(self, text: str) -> str:
        """The distinct characters of a text that the vocabulary lacks, in the order of their code points."""
        if self.kind == "bytes":
            return ""
        known = set(map(chr, range(128))) if self.kind == "ascii" else set(self.characters)
        return "".join(sorted(set(text) - known))

    def encode(self, text: str) -> np.ndarray:
        """Turns a text into ids.

        Args:
            text: any text; "bytes" takes its UTF-8 form, with what `decode` could not read restored.

        Returns:
            [N] ids in `dtype`; N is the number of characters, or of bytes for "bytes".

        Raises:
            UserError: characters that the vocabulary lacks.
        """
        if self.kind == "bytes":
            return np.frombuffer(to_utf8(text), np.uint8).copy()
        unknown = self.unknown(text)
        if unknown:
            raise UserError(f"not in the {self.kind} vocabulary: {show_characters(unknown)}")
        ids = np.empty(len(text), self.dtype)
        codes = self.codes()
        for start in range(0, len(text), CHUNK):
            piece = text[start : start + CHUNK]
            points = np.frombuffer(piece.encode("utf-32-le", errors="surrogatepass"), np.uint32)
            ids[start : start + len(piece)] = np.searchsorted(codes, points)
        return ids

    def codes(self) -> np.ndarray:
        """[size] uint32, the code point (or byte) of every id, in rising order."""
        if self.kind != "chars":
            return np.arange(self.size, dtype=np.uint32)
        return np.frombuffer(self.characters.encode("utf-32-le", errors="surrogatepass"), np.uint32)

    def decode(self, ids: Any) -> str:
        """Turns ids [N] back into text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: ids that are not a row of integers in [0, size).
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be a row of integers, not {ids.dtype} of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.size:
            raise ValueError(f"ids must lie in [0, {self.size}), not in [{ids.min()}, {ids.max()}]")
        if self.kind == "bytes":
            return ids.astype(np.uint8, copy=False).tobytes().decode("utf-8", errors="replace")
        codes = self.codes()
        pieces = (codes[ids[start : start + CHUNK]] for start in range(0, len(ids), CHUNK))
        return "".join(piece.tobytes().decode("utf-32-le", errors="surrogatepass") for piece in pieces)

    def to_dict(self) -> dict[str, str]:
        """What `from_dict` takes, as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Vocab":
        """Reads a vocabulary from a file that may come from anyone.

        Raises:
            UserError: not a vocabulary.
        """
        kind = values.get("kind") if isinstance(values, dict) else None
        characters = values.get("characters") if isinstance(values, dict) else None
        if kind in ("ascii", "bytes") and characters == "":
            return cls(kind)
        if kind != "chars" or not isinstance(characters, str) or not characters:
            raise UserError("the vocabulary must be ascii, bytes, or chars with its characters")
        return cls("chars", characters)


def encode_context(vocab: Vocab, context: str) -> np.ndarray:
    """A context as ids [P]; an empty one becomes a line break where the vocabulary has one.

    Raises:
        UserError: characters that the vocabulary lacks, which the message names.
    """
    if not context and not vocab.unknown("\n"):
        context = "\n"
    unknown = vocab.unknown(context)
    if unknown:
        raise UserError(
            f"the context has characters that the {vocab.kind} vocabulary lacks: "
            f"{show_characters(unknown)}; leave them out"
        )
    return vocab.encode(context)


def encode_stop(vocab: Vocab, stop: str) -> np.ndarray:
    """A stop string as ids [n].

    Raises:
        UserError: it is empty, or has characters that the vocabulary lacks.
    """
    unknown = vocab.unknown(stop)
    if unknown or not stop:
        why = f"the {vocab.kind} vocabulary lacks {show_characters(unknown)}" if unknown else "it is empty"
        raise UserError(f"the stop string can never occur: {why}; give another one")
    return vocab.encode(stop)


def to_utf8(text: str) -> bytes:
    """Encodes a text, giving bytes that `errors="surrogateescape"` could not decode back as they were.

    Raises:
        UserError: other lone surrogates, which stand for no character.
    """
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        lone = f"U+{ord(text[error.start]):04X}"
        raise UserError(f"the text holds {lone} at {error.start}, which is half a character; remove it") from error


def show_characters(characters: str) -> str:
    """Names characters for an error message: what they look like and their code points."""
    shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:_SHOWN_AT_MOST])
    more = len(characters) - _SHOWN_AT_MOST
    return f"{shown} and {more} more" if more > 0 else shown
