"""Reads a text for the first time, to find its characters, size and digest, and a vocabulary that fits."""

import codecs
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from charjax.config import DataConfig
from charjax.data.text_file import INDEX_STRIDE
from charjax.data.vocab import Vocab, show_characters
from charjax.errors import UserError
from charjax.host.atomic_file import naming

# Bytes read at a time; only the ids of the whole file are ever in memory.
READ_BYTES = 1 << 22
UNICODE_SIZE = 0x110000
_BOM = 0xFEFF

# The first bytes of files that are not texts: what they are, and how to get the text.
_SIGNATURES = (
    (b"\x1f\x8b", "compressed with gzip", "decompress it (gunzip)"),
    (b"\xfd7zXZ\0", "compressed with xz", "decompress it (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it (unzstd)"),
    (b"BZh91AY&SY", "compressed with bzip2", "decompress it (bunzip2)"),
    (b"PK\3\4", "a ZIP archive or an office document", "extract or export its text"),
    (b"%PDF-", "a PDF", "extract its text (pdftotext)"),
    (codecs.BOM_UTF32_LE, "in UTF-32", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (codecs.BOM_UTF16_LE, "in UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    (codecs.BOM_UTF16_BE, "in UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
)

OpenText = Callable[[], BufferedIOBase]

_log = logging.getLogger("charjax")


def check_is_file(path: str | Path) -> None:
    """Checks that a text can be read from a path, more than once.

    Raises:
        UserError: the path does not exist, or is a folder, pipe or device.
    """
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; give a text file")
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; give a text file")
    if not Path(path).is_file():
        raise UserError(f"{path} is a pipe or device; give a text file, which can be read more than once")


def check_is_text(path: str | Path, vocab: str | Vocab) -> None:
    """Recognizes files that are not texts by their first bytes, except for the vocabulary "bytes".

    Raises:
        UserError: the file is compressed, a document, or in UTF-16 or UTF-32; the message says how to get its text. Or
            vocab is not one.
    """
    kind = vocab.kind if isinstance(vocab, Vocab) else DataConfig(vocab=vocab).vocab  # type: ignore[arg-type]
    if kind == "bytes":
        return
    with Path(path).open("rb") as file:
        start = file.read(1024)
    found = next((rest for signature, *rest in _SIGNATURES if start.startswith(signature)), _utf_16_without_mark(start))
    if found:
        what, remedy = found
        raise UserError(
            f"{path} is {what}, not UTF-8 text; {remedy}, or use --vocab bytes to take its bytes as they are"
        )


def _utf_16_without_mark(start: bytes) -> list[str]:
    """Recognizes UTF-16 by its zeros: they are every other byte of Latin letters."""
    for order, zeros, others in (("LE", start[1::2], start[::2]), ("BE", start[::2], start[1::2])):
        if len(start) > 3 and zeros.count(0) > 0.8 * len(zeros) and others.count(0) < 0.2 * len(others):
            return ["in UTF-16", f"convert it (iconv -f UTF-16{order} -t UTF-8)"]
    return []


def digest(path: str | Path) -> str:
    """Returns the hex SHA-256 of a file, as in `Corpus.sha256`."""
    check_is_file(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InvalidByte(NamedTuple):
    """A byte that is not part of a UTF-8 character, and its offset in the text."""

    value: int
    offset: int


class NotUTF8Error(Exception):
    """Raised at the first byte of a text that is not UTF-8."""

    def __init__(self, byte: InvalidByte) -> None:
        super().__init__(byte)
        self.byte = byte


@dataclasses.dataclass
class Survey:
    """The result of the first pass over a text.

    Attributes:
        size: bytes.
        sha256: hex digest of the bytes.
        characters: number of characters, without a byte order mark.
        seen: [UNICODE_SIZE] bool, which code points occur.
        invalid: the first byte that is not UTF-8, if any; the two fields above then end before it.
        index: byte offset of every `INDEX_STRIDE`th character, if requested.
    """

    size: int = 0
    sha256: str = ""
    characters: int = 0
    seen: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(UNICODE_SIZE, bool))
    invalid: InvalidByte | None = None
    index: list[int] = dataclasses.field(default_factory=list)

    @property
    def is_ascii(self) -> bool:
        """True if the text is UTF-8 and all of its characters are ASCII."""
        return self.invalid is None and not self.seen[128:].any()

    @property
    def alphabet(self) -> str:
        """The distinct characters of the text, in the order of their code points."""
        return "".join(map(chr, np.flatnonzero(self.seen)))


def survey_text(open_text: OpenText, name: str, vocab: str | Vocab, *, index: bool = False) -> tuple[Survey, Vocab]:
    """Reads a text for the first time and chooses a vocabulary that has all of its characters.

    Args:
        open_text: opens the text, from its beginning each time.
        name: the text's name in error messages.
        vocab: as in `Corpus.from_file`.
        index: whether to find the byte offsets of characters as well.

    Raises:
        UserError: the text is empty, is not UTF-8 although `vocab` needs it, or has characters that `vocab` lacks.
    """
    with naming(Path(name)):
        survey = _survey(open_text, index=index)
    if not survey.size:
        raise UserError(f"{name} is empty; give a non-empty text")
    chosen = _choose(survey, name, vocab)
    if survey.invalid is not None and vocab == "auto":
        byte, offset = survey.invalid
        count = _count_invalid(open_text)
        some, first = ("1 byte", "") if count == 1 else (f"{count} bytes", "the first ")
        verb = "is" if count == 1 else "are"
        reason = f"{some} of {name} {verb} not UTF-8, {first}0x{byte:02x} at offset {offset}"
        _log.info("vocabulary: bytes (256), because %s", reason)
    if chosen.kind == "bytes":
        return survey, chosen
    is_fixed = isinstance(vocab, Vocab)  # a model's, which no option can change
    if survey.invalid is not None:
        byte, offset = survey.invalid
        advice = "convert the file" if is_fixed else "use --vocab bytes, or convert the file"
        raise UserError(f"{name} is not UTF-8: byte 0x{byte:02x} at offset {offset}; {advice}")
    if not survey.characters:
        raise UserError(f"{name} is empty except for a byte order mark; give a non-empty text")
    unknown = chosen.unknown(survey.alphabet)
    if unknown:
        advice = "replace it in the text" if is_fixed else "use --vocab auto, chars or bytes"
        raise _unknown_error(open_text, name, chosen, unknown, advice)
    return survey, chosen


def _count_invalid(open_text: OpenText) -> int:
    """Returns how many bytes are not part of a UTF-8 character."""
    decoder, count = codecs.getincrementaldecoder("utf-8")("surrogateescape"), 0
    with open_text() as file:
        while True:
            chunk = file.read(READ_BYTES)
            points = np.frombuffer(
                decoder.decode(chunk, final=not chunk).encode("utf-32-le", "surrogatepass"), np.uint32
            )
            count += int(((points >= 0xDC80) & (points <= 0xDCFF)).sum())
            if not chunk:
                return count


def _survey(open_text: OpenText, *, index: bool) -> Survey:
    with open_text() as file:
        found = Survey(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=file.seek(0, 2))
        file.seek(0)
        has_mark = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    offset = len(codecs.BOM_UTF8) if has_mark else 0
    try:
        for points in code_points(open_text):
            found.seen[points] = True
            if index:
                offset += _add_to_index(found, points, offset)
            found.characters += len(points)
    except NotUTF8Error as error:
        found.invalid = error.byte
    return found


def _add_to_index(found: Survey, points: np.ndarray, offset: int) -> int:
    """Adds the next characters, the first of them at a byte offset, to the index; returns the bytes that they take."""
    ends = np.cumsum(1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF))
    for position in range(-found.characters % INDEX_STRIDE, len(points), INDEX_STRIDE):
        found.index.append(offset + (int(ends[position - 1]) if position else 0))
    return int(ends[-1]) if len(ends) else 0


def code_points(open_text: OpenText) -> Iterator[np.ndarray]:
    """Decodes a text chunk by chunk, yielding code points [n] without a byte order mark at the beginning.

    Raises:
        NotUTF8Error: the text is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    at_start, offset = True, 0
    with open_text() as file:
        while True:
            chunk = file.read(READ_BYTES)
            points = _decode(decoder, chunk, offset)
            if at_start and len(points):
                points = points[int(points[0] == _BOM) :]
                at_start = False
            yield points
            if not chunk:
                return
            offset += len(chunk)


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int) -> np.ndarray:
    """Decodes the chunk at a byte offset to code points; an empty one ends the text."""
    pending = decoder.getstate()[0]
    if chunk and chunk.isascii() and not pending:
        return np.frombuffer(chunk, np.uint8)
    try:
        text = decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        byte = (pending + chunk)[error.start]
        raise NotUTF8Error(InvalidByte(byte, offset - len(pending) + error.start)) from None
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _choose(survey: Survey, name: str, vocab: str | Vocab) -> Vocab:
    if isinstance(vocab, Vocab):
        return vocab
    DataConfig(vocab=vocab)  # type: ignore[arg-type]  # checks the name
    if vocab == "ascii":
        return Vocab.ascii()
    if vocab == "bytes":
        return Vocab.bytes()
    if vocab == "auto" and survey.is_ascii:
        _log.info("vocabulary: ascii (128 characters), because %s is plain ASCII", name)
        return Vocab.ascii()
    if vocab == "auto" and survey.invalid is not None:
        return Vocab.bytes()
    chars = Vocab("chars", survey.alphabet)
    if vocab == "auto":
        _log.info("vocabulary: chars (%d characters), because %s is UTF-8 beyond ASCII", chars.size, name)
    return chars


def _unknown_error(open_text: OpenText, name: str, vocab: Vocab, unknown: str, advice: str) -> UserError:
    """Names the characters that a vocabulary lacks, and the line and column of the first of them."""
    codes = np.array([ord(character) for character in unknown], np.uint32)
    line, column = 1, 1
    for points in code_points(open_text):
        found = np.flatnonzero(np.isin(points, codes))
        before = points[: found[0]] if found.size else points
        newlines = np.flatnonzero(before == ord("\n"))
        line += len(newlines)
        column = len(before) - int(newlines[-1]) if newlines.size else column + len(before)
        if found.size:
            first = chr(points[found[0]])
            break
    others = unknown.replace(first, "")
    also = f", and neither {'is' if len(others) == 1 else 'are'} {show_characters(others)}" if others else ""
    return UserError(
        f"{name} line {line}, column {column}: {show_characters(first)} is not in the {vocab.kind} "
        f"vocabulary{also}; {advice}"
    )
