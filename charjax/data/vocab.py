"""Maps characters to ids and back."""

import dataclasses
import logging
import unicodedata
from typing import Any, Literal, get_args

import numpy as np

from charjax.config import OnUnknown
from charjax.errors import UserError, check_type, in_short

Kind = Literal["ascii", "chars", "bytes"]

# Number of characters encoded or decoded at once, so that the full text is never in memory as UTF-32.
CHUNK = 1 << 20
_MAX_SHOWN = 5
# Quotes, dashes and letters as they are typed; Unicode compatibility decomposition covers other look-alikes.
_TYPED = str.maketrans(
    "\u2018\u2019\u201a\u201c\u201d\u201e\u2010\u2011\u2012\u2013\u2014\u2015\u2212ßæÆœŒøØłŁđĐðÐþÞ\u0131",
    "'''\"\"\"-------saAoOoOlLdDdDtTi",
)

_log = logging.getLogger("charjax")


@dataclasses.dataclass(frozen=True)
class Vocab:
    """A vocabulary, which assigns an id to every character.

    Attributes:
        kind: "ascii" (ids are the 128 ASCII codes), "chars" (positions in `characters`) or "bytes" (UTF-8 bytes).
        characters: for "chars", the distinct characters in code point order; otherwise empty.

    Examples:
        >>> from charjax import Vocab
        >>> vocab = Vocab.from_text("hello")
        >>> vocab.encode("hole")
        array([1, 3, 2, 0], dtype=uint8)
        >>> vocab.decode([1, 0])
        'he'
    """

    kind: Kind
    characters: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.kind, str) and self.kind in get_args(Kind)):
            raise UserError(f"the vocabulary kind must be ascii, chars or bytes, not {in_short(self.kind)}")
        check_type("characters", self.characters, str, "use Vocab.from_text to build a vocabulary from text")
        if self.characters != "".join(sorted(set(self.characters))):
            raise UserError("the characters of a vocabulary must be distinct and in code point order")

    @classmethod
    def ascii(cls) -> "Vocab":
        """Returns the vocabulary of the 128 ASCII characters."""
        return cls("ascii")

    @classmethod
    def from_text(cls, text: str) -> "Vocab":
        """Returns the vocabulary of the distinct characters in a string."""
        _check_is_text(text)
        return cls("chars", "".join(sorted(set(text))))

    @classmethod
    def bytes(cls) -> "Vocab":
        """Returns the vocabulary of the 256 bytes, which can encode any text or file."""
        return cls("bytes")

    @property
    def size(self) -> int:
        """Number of ids."""
        return {"ascii": 128, "bytes": 256}.get(self.kind) or len(self.characters)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that fits every id."""
        return np.min_scalar_type(max(self.size - 1, 0))

    def union(self, other: "Vocab") -> "Vocab":
        """Returns the smallest vocabulary that can encode whatever either of two vocabularies can.

        Examples:
            >>> from charjax import Vocab
            >>> Vocab.from_text("latte").union(Vocab.from_text("crema")).characters
            'acelmrt'
        """
        if "bytes" in (self.kind, other.kind):
            return Vocab.bytes()
        if self.kind == other.kind == "ascii":
            return self
        return Vocab("chars", "".join(sorted({*map(chr, self.codes()), *map(chr, other.codes())})))

    def unknown(self, text: str) -> str:
        """Returns the distinct characters in a string that are not in the vocabulary, in code point order."""
        _check_is_text(text)
        if self.kind == "bytes":
            return ""
        known = set(map(chr, range(128))) if self.kind == "ascii" else set(self.characters)
        return "".join(sorted(set(text) - known))

    def encode(self, text: str, *, on_unknown: OnUnknown = "error") -> np.ndarray:
        """Encodes text as ids.

        Args:
            text: any string; "bytes" encodes it as UTF-8, and surrogate escapes as the bytes that they represent.
            on_unknown: how to handle characters not in the vocabulary: "error" raises an error, "skip" leaves them out,
                and "replace" uses a similar character, e.g. e for é, or else "?", a space or the first character
                in the vocabulary. The number of skipped or replaced characters is logged as a warning.

        Returns:
            [N] ids in `dtype`; N is the number of characters, or of bytes for "bytes".

        Raises:
            UserError: the text contains characters not in the vocabulary.
        """
        unknown, on_unknown = self.unknown(text), check_on_unknown(on_unknown)
        if unknown and on_unknown == "error":
            raise UserError(f"not in the {self.kind} vocabulary: {show_characters(unknown)}")
        if unknown:
            skip = on_unknown == "skip"
            log_unknown("the text", self, unknown, sum(map(text.count, unknown)), skip=skip)
            text = text.translate({ord(one): None if skip else stand_in(self, one) for one in unknown})
        if self.kind == "bytes":
            return np.frombuffer(to_utf8(text), np.uint8).copy()
        ids = np.empty(len(text), self.dtype)
        codes = self.codes()
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            points = np.frombuffer(chunk.encode("utf-32-le", errors="surrogatepass"), np.uint32)
            ids[start : start + len(chunk)] = np.searchsorted(codes, points)
        return ids

    def codes(self) -> np.ndarray:
        """Returns the code point or byte of every id in increasing order, [size] uint32."""
        if self.kind != "chars":
            return np.arange(self.size, dtype=np.uint32)
        return np.frombuffer(self.characters.encode("utf-32-le", errors="surrogatepass"), np.uint32)

    def decode(self, ids: Any) -> str:
        """Decodes ids [N] to text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: the ids are not a one-dimensional array of integers in [0, size).
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be a one-dimensional array of integers, not {ids.dtype} of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.size:
            raise ValueError(f"ids must be in [0, {self.size}), but the values range from {ids.min()} to {ids.max()}")
        if self.kind == "bytes":
            return ids.astype(np.uint8, copy=False).tobytes().decode("utf-8", errors="replace")
        codes = self.codes()
        chunks = (codes[ids[start : start + CHUNK]] for start in range(0, len(ids), CHUNK))
        return "".join(chunk.tobytes().decode("utf-32-le", errors="surrogatepass") for chunk in chunks)

    def to_dict(self) -> dict[str, str]:
        """Returns a JSON-serializable dict that `from_dict` accepts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Vocab":
        """Builds a vocabulary from untrusted JSON values.

        Raises:
            UserError: the values do not describe a vocabulary.
        """
        match values:
            case {"kind": "ascii" | "bytes" as kind, "characters": ""}:
                return cls(kind)
            case {"kind": "chars", "characters": str(characters)} if characters:
                return cls("chars", characters)
        raise UserError("the vocabulary must be ascii, bytes, or chars with its characters")


def check_on_unknown(on_unknown: OnUnknown) -> OnUnknown:
    """Checks that `on_unknown` is one of its three values; raises UserError otherwise."""
    if not (isinstance(on_unknown, str) and on_unknown in get_args(OnUnknown)):
        raise UserError(f"on_unknown must be error, skip or replace, not {in_short(on_unknown)}")
    return on_unknown


def stand_in(vocab: Vocab, character: str) -> str:
    """Returns a replacement for a character not in a vocabulary, always one character, to preserve positions."""
    plain = unicodedata.normalize("NFKD", character).translate(_TYPED)[0]
    candidates = (plain, plain.swapcase(), "?", " ")
    return next((one for one in candidates if len(one) == 1 and not vocab.unknown(one)), vocab.characters[:1])


def log_unknown(name: str, vocab: Vocab, unknown: str, count: int, *, skip: bool) -> None:
    """Logs which characters in the text were skipped or replaced, and how many."""
    _log.warning(
        "%s: %s %s, because the %s vocabulary does not contain %s",
        name,
        "1 character was" if count == 1 else f"{count:,} characters were",
        "skipped" if skip else "replaced",
        vocab.kind,
        show_characters(unknown),
    )


def encode_context(vocab: Vocab, context: str, on_unknown: OnUnknown | None = None) -> np.ndarray:
    """Encodes a context as ids [P]; an empty context becomes a line break if the vocabulary contains one.

    Args:
        vocab: the vocabulary.
        context: the text.
        on_unknown: as for `Vocab.encode`; None raises an error that does not suggest any option.

    Raises:
        UserError: the context contains characters not in the vocabulary.
    """
    check_type("context", context, str, "pass a string, or a list of strings for multiple texts")
    unknown, policy = vocab.unknown(context), "error" if on_unknown is None else check_on_unknown(on_unknown)
    if unknown and policy == "error":
        advice = "remove them" if on_unknown is None else "remove them, or use --on-unknown skip or replace"
        raise UserError(
            f"the context contains characters not in the {vocab.kind} vocabulary: {show_characters(unknown)}; {advice}"
        )
    ids = vocab.encode(context, on_unknown=policy)
    return ids if len(ids) or vocab.unknown("\n") else vocab.encode("\n")


def encode_stop(vocab: Vocab, stop: str) -> np.ndarray:
    """Encodes a stop string as ids [n].

    Raises:
        UserError: the string is empty, or contains characters not in the vocabulary.
    """
    check_type("stop", stop, str, "pass a single string")
    unknown = vocab.unknown(stop)
    if unknown or not stop:
        why = f"the {vocab.kind} vocabulary does not contain {show_characters(unknown)}" if unknown else "it is empty"
        raise UserError(f"the stop string cannot be used: {why}; choose a different one")
    return vocab.encode(stop)


def to_utf8(text: str) -> bytes:
    """Encodes a string as UTF-8, restoring bytes that were decoded with `errors="surrogateescape"`.

    Raises:
        UserError: the string contains other lone surrogates, which are not characters.
    """
    _check_is_text(text)
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        lone = f"U+{ord(text[error.start]):04X}"
        raise UserError(f"character {error.start} of the text is {lone}, half a surrogate pair; remove it") from error


def _check_is_text(text: str) -> None:
    check_type("text", text, str, "to read a file, use Corpus.from_file or read_pieces")


def show_characters(characters: str) -> str:
    """Formats characters for an error message, each with its code point, or its value if it is a non-UTF-8 byte."""
    shown = ", ".join(
        f"byte 0x{ord(character) - 0xDC00:02x}"
        if "\udc80" <= character <= "\udcff"
        else f"{character!r} (U+{ord(character):04X})"
        for character in characters[:_MAX_SHOWN]
    )
    more = len(characters) - _MAX_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
