"""Makes a first pass over the text to find its characters, size and digest, and a vocabulary that fits it."""

import codecs
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from charjax.config import DataConfig, OnUnknown
from charjax.data.character_decoder import utf8_sizes
from charjax.data.text_file import INDEX_STRIDE, SKIPPED, TextFile
from charjax.data.text_source import Part, TextSource
from charjax.data.vocab import Vocab, log_unknown, show_characters, stand_in
from charjax.errors import UserError

UNICODE_SIZE = 0x110000
_BOM = 0xFEFF

# First bytes of files that are not plain text, with what the files are and how to get the text out of them.
_SIGNATURES = (
    (b"\x1f\x8b", "compressed with gzip", "rename it to end in .gz, or decompress it (gunzip)"),
    (b"\xfd7zXZ\0", "compressed with xz", "rename it to end in .xz, or decompress it (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "rename it to end in .zst, or decompress it (unzstd)"),
    (b"BZh91AY&SY", "compressed with bzip2", "rename it to end in .bz2, or decompress it (bunzip2)"),
    (b"PK\3\4", "a ZIP archive or an office document", "extract or export its text"),
    (b"%PDF-", "a PDF", "extract its text (pdftotext)"),
    (codecs.BOM_UTF32_LE, "in UTF-32", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (codecs.BOM_UTF16_LE, "in UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    (codecs.BOM_UTF16_BE, "in UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
)

_ADVICE = ", or use --on-unknown skip or replace"

_log = logging.getLogger("charjax")


def check_is_text(part: Part, vocab: str | Vocab) -> None:
    """Recognizes files that are not plain text by their first bytes, unless the vocabulary is "bytes".

    Raises:
        UserError: the file is compressed, is a document, is in UTF-16 or UTF-32 (the message says how to get its
            text), or is another binary file, or vocab is not valid.
    """
    kind = vocab.kind if isinstance(vocab, Vocab) else DataConfig(vocab=vocab).vocab  # type: ignore[arg-type]
    if kind == "bytes":
        return
    start = part.bytes(0, min(1024, part.size))
    found = next((rest for signature, *rest in _SIGNATURES if start.startswith(signature)), _without_signature(start))
    if found:
        what, remedy = found
        raise UserError(
            f"{part.name} is {what}, not UTF-8 text; {remedy}, or use --vocab bytes to use its bytes as they are"
        )


def _without_signature(start: bytes) -> list[str]:
    """Recognizes tar archives, UTF-16 by its zeros (every other byte in Latin text), and other binary files."""
    if start[257:262] == b"ustar":
        return ["a tar archive", "extract it and use the folder"]
    for order, zeros, others in (("LE", start[1::2], start[::2]), ("BE", start[::2], start[1::2])):
        if len(start) > 3 and zeros.count(0) > 0.8 * len(zeros) and others.count(0) < 0.2 * len(others):
            return ["in UTF-16", f"convert it (iconv -f UTF-16{order} -t UTF-8)"]
    if 0 in start and "\ufffd" in codecs.getincrementaldecoder("utf-8")("replace").decode(start):
        return ["a binary file, e.g. an image", "leave it out"]
    return []


class InvalidByte(NamedTuple):
    """A byte that is not part of a UTF-8 character, and its offset in the text."""

    value: int
    offset: int


class NotUTF8Error(Exception):
    """Raised at the first byte in the text that is not valid UTF-8."""

    def __init__(self, byte: InvalidByte) -> None:
        super().__init__(byte)
        self.byte = byte


@dataclasses.dataclass
class Survey:
    """The result of the first pass over the text.

    Attributes:
        source: the text.
        sha256: hex digest of the bytes.
        characters: number of characters, excluding a byte order mark and skipped characters.
        seen: [UNICODE_SIZE] bool, True for code points that occur in the text.
        invalid: first byte that is not valid UTF-8, if any; the two fields above then only cover the text before it.
        unknown: number of characters that are skipped or replaced.
        index: byte offset of every `INDEX_STRIDE`th character.
    """

    source: TextSource
    sha256: str = ""
    characters: int = 0
    seen: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(UNICODE_SIZE, bool))
    invalid: InvalidByte | None = None
    unknown: int = 0
    index: list[int] = dataclasses.field(default_factory=list)

    @property
    def is_ascii(self) -> bool:
        """True if the text is UTF-8 and all of its characters are ASCII."""
        return self.invalid is None and not self.seen[128:].any()

    @property
    def alphabet(self) -> str:
        """The distinct characters of the text, in the order of their code points."""
        return "".join(map(chr, np.flatnonzero(self.seen)))

    def add(self, points: np.ndarray, offset: int, known: np.ndarray | None, *, skip: bool) -> int:
        """Adds the next characters and returns the byte offset after them.

        Args:
            points: code points [n]; uint8 if all are ASCII.
            offset: byte offset at which these characters begin.
            known: [UNICODE_SIZE] bool, True for characters in the vocabulary; None if all characters must be in it.
            skip: leave out characters that are not in the vocabulary.
        """
        if not len(points):
            return offset
        if points.dtype == np.uint8:  # several times faster than indexing with every character
            new = points.tobytes().translate(None, np.flatnonzero(self.seen[:128]).astype(np.uint8).tobytes())
            self.seen[list(set(new))] = True
        else:
            self.seen[points] = True
        kept = None
        if known is not None:
            is_known = known[points]
            self.unknown += len(points) - int(np.count_nonzero(is_known))
            kept = np.flatnonzero(is_known) if skip else None
        if kept is None:
            positions, count = np.arange(-self.characters % INDEX_STRIDE, len(points), INDEX_STRIDE), len(points)
        else:
            positions, count = kept[-self.characters % INDEX_STRIDE :: INDEX_STRIDE], len(kept)
        self.characters += count
        offsets, end = _offsets(points, positions, offset)
        self.index += offsets
        return end


def _offsets(points: np.ndarray, positions: np.ndarray, offset: int) -> tuple[list[int], int]:
    """Returns the byte offsets of the characters at some positions, and the offset after the last character."""
    if points.dtype == np.uint8:
        return (offset + positions).tolist(), offset + len(points)
    cuts = np.unique(np.append(0, positions))
    sizes = np.add.reduceat(utf8_sizes(points), cuts)
    ends = offset + np.cumsum(sizes)
    return (ends - sizes)[len(cuts) - len(positions) :].tolist(), int(ends[-1])


def survey_texts(
    sources: Sequence[TextSource],
    vocab: str | Vocab,
    *,
    on_unknown: OnUnknown | None = None,
    recognize: Callable[[list[str]], None] | None = None,
    base: Vocab | None = None,
) -> list[TextFile]:
    """Makes a first pass over texts and chooses a vocabulary that contains all of their characters.

    Args:
        sources: the texts.
        vocab: as in `Corpus.from_file`.
        on_unknown: what to do about characters not in a given vocabulary; None raises an error that does not suggest
            any option.
        recognize: called with the digests of the texts before anything else is checked.
        base: a vocabulary to extend, unless `vocab` is a vocabulary.

    Raises:
        UserError: one of the texts is empty, is not UTF-8 although `vocab` requires it, or contains characters not in
            `vocab`.
    """
    kind = vocab.kind if isinstance(vocab, Vocab) else DataConfig(vocab=vocab).vocab  # type: ignore[arg-type]
    fixed = Vocab.ascii() if kind == "ascii" else vocab
    known, decode = None, kind != "bytes"
    if isinstance(fixed, Vocab):
        known = _known(fixed) if decode and on_unknown in ("skip", "replace") else None
    surveys = [_survey(source, known, skip=on_unknown == "skip", decode=decode) for source in sources]
    if recognize is not None:
        recognize([survey.sha256 for survey in surveys])
    for survey in surveys:
        if not survey.source.size:
            raise UserError(f"{survey.source.name} is empty; use non-empty text")
    chosen = _choose(surveys, vocab)
    if base is not None and not isinstance(vocab, Vocab):
        chosen = base.union(chosen)
    elif vocab == "auto":
        _log_choice(surveys, chosen)
    if chosen.kind != "bytes":
        for survey in surveys:
            _check(survey, chosen, "" if on_unknown is None else _ADVICE, is_fixed=isinstance(vocab, Vocab))
    return [_text_file(survey, chosen, on_unknown) for survey in surveys]


def _survey(source: TextSource, known: np.ndarray | None, *, skip: bool, decode: bool) -> Survey:
    digest, found = hashlib.sha256(), Survey(source)

    def chunks() -> Iterator[bytes]:
        for chunk in source.chunks():
            digest.update(chunk)
            yield chunk

    rest, offset = chunks(), source.mark
    try:
        for points in code_points(rest, "strict" if known is None else "surrogateescape") if decode else ():
            offset = found.add(points, offset, known, skip=skip)
    except NotUTF8Error as error:
        found.invalid = error.byte
    for _ in rest:
        pass  # only needed for the digest
    found.sha256 = digest.hexdigest()
    return found


def _check(survey: Survey, vocab: Vocab, or_tolerate: str, *, is_fixed: bool) -> None:
    """Checks that the text is not empty and its characters are in the vocabulary, which is the user's if `is_fixed`."""
    source = survey.source
    if survey.invalid is not None:
        file, offset = source.locate(survey.invalid.offset)
        advice = f"convert the file{or_tolerate}" if is_fixed else "use --vocab bytes, or convert the file"
        raise UserError(f"{file} is not UTF-8: byte 0x{survey.invalid.value:02x} at offset {offset}; {advice}")
    if source.size == source.mark:
        raise UserError(f"{source.name} is empty except for a byte order mark; use non-empty text")
    if not survey.characters:
        raise UserError(f"{source.name} has no characters in the {vocab.kind} vocabulary; use different text")
    unknown = vocab.unknown(survey.alphabet)
    if unknown and not survey.unknown:
        advice = f"replace it in the text{or_tolerate}" if is_fixed else "use --vocab auto, chars or bytes"
        raise _unknown_error(source, vocab, unknown, advice)


def _text_file(survey: Survey, vocab: Vocab, on_unknown: OnUnknown | None) -> TextFile:
    source, unknown = survey.source, dict[int, int]()
    if survey.unknown:
        skip, lacking = on_unknown == "skip", vocab.unknown(survey.alphabet)
        log_unknown(source.name, vocab, lacking, survey.unknown, skip=skip)
        unknown = {ord(one): SKIPPED if skip else int(vocab.encode(stand_in(vocab, one))[0]) for one in lacking}
    one_byte_each = vocab.kind == "bytes" or (survey.is_ascii and SKIPPED not in unknown.values())
    return TextFile(
        source=source,
        vocab=vocab,
        characters=source.size if vocab.kind == "bytes" else survey.characters,
        first_byte=0 if vocab.kind == "bytes" else source.mark,
        index=None if one_byte_each else survey.index,
        size=source.size,
        sha256=survey.sha256,
        unknown=unknown,
    )


def code_points(chunks: Iterable[bytes], errors: str = "strict") -> Iterator[np.ndarray]:
    """Decodes text chunk by chunk, yielding code points [n] without a byte order mark at the beginning.

    Raises:
        NotUTF8Error: the text is not valid UTF-8 and `errors` is not "surrogateescape".
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    at_start, offset = True, 0
    for chunk in itertools.chain(chunks, [b""]):
        points = _decode(decoder, chunk, offset)
        if at_start and len(points):
            points = points[int(points[0] == _BOM) :]
            at_start = False
        yield points
        offset += len(chunk)


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int) -> np.ndarray:
    """Decodes the chunk at a byte offset to code points; an empty chunk marks the end of the text."""
    pending = decoder.getstate()[0]
    if chunk and chunk.isascii() and not pending:
        return np.frombuffer(chunk, np.uint8)
    try:
        text = decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        byte = (pending + chunk)[error.start]
        raise NotUTF8Error(InvalidByte(byte, offset - len(pending) + error.start)) from None
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _choose(surveys: Sequence[Survey], vocab: str | Vocab) -> Vocab:
    if isinstance(vocab, Vocab):
        return vocab
    if vocab == "ascii" or (vocab == "auto" and all(survey.is_ascii for survey in surveys)):
        return Vocab.ascii()
    if vocab == "bytes" or (vocab == "auto" and any(survey.invalid for survey in surveys)):
        return Vocab.bytes()
    return Vocab("chars", "".join(sorted(set().union(*(survey.alphabet for survey in surveys)))))


def _log_choice(surveys: Sequence[Survey], chosen: Vocab) -> None:
    if chosen.kind == "bytes":
        source, invalid = next((survey.source, survey.invalid) for survey in surveys if survey.invalid is not None)
        file, offset = source.locate(invalid.offset)
        count = _count_invalid(source)
        some, first = ("1 byte", "") if count == 1 else (f"{count} bytes", "the first ")
        reason = f"{some} of {source.name} {'is' if count == 1 else 'are'} not UTF-8, {first}"
        reason += f"0x{invalid.value:02x} at offset {offset}{'' if file == source.name else f' of {file}'}"
    elif chosen.kind == "ascii":
        reason = f"{surveys[0].source.name} is plain ASCII"
    else:
        reason = f"{next(survey.source.name for survey in surveys if not survey.is_ascii)} is UTF-8 beyond ASCII"
    size = f"{chosen.size} characters" if chosen.kind != "bytes" else f"{chosen.size}"
    _log.info("vocabulary: %s (%s), because %s", chosen.kind, size, reason)


def _count_invalid(source: TextSource) -> int:
    """Returns the number of bytes that are not part of a UTF-8 character."""
    points = code_points(source.chunks(), "surrogateescape")
    return sum(int(((some >= 0xDC80) & (some <= 0xDCFF)).sum()) for some in points)


def _unknown_error(source: TextSource, vocab: Vocab, unknown: str, advice: str) -> UserError:
    """Returns an error that names the characters not in the vocabulary and the location of the first one."""
    codes = np.array([ord(character) for character in unknown], np.uint32)
    offset = source.mark
    for points in code_points(source.chunks()):
        found = np.flatnonzero(np.isin(points, codes))
        offset += int(utf8_sizes(points[: found[0]] if found.size else points).sum())
        if found.size:
            first = chr(points[found[0]])
            break
    others = unknown.replace(first, "")
    also = f", and neither {'is' if len(others) == 1 else 'are'} {show_characters(others)}" if others else ""
    return UserError(
        f"{source.place(offset)}: {show_characters(first)} is not in the {vocab.kind} vocabulary{also}; {advice}"
    )


def _known(vocab: Vocab) -> np.ndarray:
    known = np.zeros(UNICODE_SIZE, bool)
    known[vocab.codes()] = True
    return known
