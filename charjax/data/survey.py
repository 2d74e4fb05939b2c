"""The first reading of a text: which characters occur, its size, its digest, and what no vocabulary could take."""

import codecs
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from charjax.config import DataConfig
from charjax.data.text_file import MARK
from charjax.data.vocab import Vocab, show_characters
from charjax.errors import UserError

# Bytes read at a time: a file is never in memory but as ids.
READ_BYTES = 1 << 22


UNICODE_SIZE = 0x110000


_BOM = 0xFEFF


_BOM_BYTES = codecs.BOM_UTF8


_log = logging.getLogger("charjax")


def check_is_file(path: str | Path) -> None:
    """Checks that there is a file to read.

    Raises:
        UserError: there is none, or a folder, pipe or device in its place: a text is read more than once.
    """
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; give a text file")
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; give a text file")
    if not Path(path).is_file():
        raise UserError(f"{path} is a pipe or device; give a text file, which can be read more than once")


def digest(path: str | Path) -> str:
    """Hex SHA-256 of a file, as `Corpus.sha256` has it."""
    check_is_file(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass
class Survey:
    """What a first reading finds: size, digest, which code points occur, and what no vocabulary could take."""

    size: int = 0
    characters: int = 0
    not_utf8: int | None = None  # byte offset
    seen: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(UNICODE_SIZE, bool))
    sha256: str = ""
    marks: list[int] = dataclasses.field(default_factory=list)  # as `TextFile` has them, if they were asked for

    @property
    def is_ascii(self) -> bool:
        """Whether the text is UTF-8 of ASCII characters only."""
        return self.not_utf8 is None and not self.seen[128:].any()


def survey_for(
    open_text: Callable[[], BinaryIO], name: str, vocab: str | Vocab, *, mark: bool = False
) -> tuple[Survey, Vocab]:
    """Reads a text for the first time, chooses its vocabulary and checks that it has all the text's characters."""
    survey = _survey(open_text, mark=mark)
    if not survey.size:
        raise UserError(f"{name} is empty; give a text of some length")
    chosen = _choose(survey, name, vocab)
    if chosen.kind == "bytes":
        return survey, chosen
    fixed = isinstance(vocab, Vocab)  # a model's, which no option can change
    if survey.not_utf8 is not None:
        advice = "convert the file" if fixed else "use --vocab bytes, or convert the file"
        raise UserError(
            f"{name} is not UTF-8: byte 0x{_byte_at(open_text, survey.not_utf8):02x} at offset {survey.not_utf8}; "
            f"{advice}"
        )
    if not survey.characters:
        raise UserError(f"{name} is empty but for a byte order mark; give a text of some length")
    missing = np.flatnonzero(survey.seen)
    missing = missing[~np.isin(missing, chosen.codes())]
    if missing.size:
        advice = "replace it in the text" if fixed else "use --vocab auto, chars or bytes"
        raise _missing_error(open_text, name, chosen, "".join(map(chr, missing)), advice)
    return survey, chosen


def _survey(open_text: Callable[[], BinaryIO], *, mark: bool) -> Survey:
    found, digest = Survey(), hashlib.sha256()
    with open_text() as file:
        for chunk in iter(lambda: file.read(READ_BYTES), b""):
            digest.update(chunk)
            found.size += len(chunk)
    found.sha256 = digest.hexdigest()
    try:
        offset = len(_BOM_BYTES) if _begins_with_mark(open_text) else 0
        for points in code_points(open_text):
            found.seen[points] = True
            if mark:
                offset += _mark(found, points, offset)
            found.characters += len(points)
    except UnicodeDecodeError:
        found.not_utf8 = _first_invalid(open_text)
    return found


def _begins_with_mark(open_text: Callable[[], BinaryIO]) -> bool:
    with open_text() as file:
        return file.read(len(_BOM_BYTES)) == _BOM_BYTES


def _mark(found: Survey, points: np.ndarray, offset: int) -> int:
    """Notes the byte offset of every `MARK`th character among the next ones: -> how many bytes they take."""
    ends = np.cumsum(1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF))
    for place in range(-found.characters % MARK, len(points), MARK):
        found.marks.append(offset + (int(ends[place - 1]) if place else 0))
    return int(ends[-1]) if len(ends) else 0


def code_points(open_text: Callable[[], BinaryIO]) -> Iterator[np.ndarray]:
    """Decodes a text piece by piece into code points, without the byte order mark at its beginning."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at_start = True
    with open_text() as file:
        while True:
            chunk = file.read(READ_BYTES)
            if at_start or not chunk.isascii():
                text = decoder.decode(chunk, final=not chunk)
                points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            elif decoder.getstate()[0]:
                decoder.decode(chunk[:1], final=True)  # raises: ASCII cannot go on with a character begun
            else:
                points = np.frombuffer(chunk, np.uint8)
            if at_start and len(points):
                points = points[int(points[0] == _BOM) :]
                at_start = False
            yield points
            if not chunk:
                return


def _first_invalid(open_text: Callable[[], BinaryIO]) -> int:
    """Offset of the first byte that no UTF-8 character holds."""
    offset, held = 0, b""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_text() as file:
        while True:
            chunk = file.read(READ_BYTES)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return offset - len(held) + error.start
            offset += len(chunk)
            held = decoder.getstate()[0]


def _byte_at(open_text: Callable[[], BinaryIO], offset: int) -> int:
    with open_text() as file:
        file.seek(offset)
        return file.read(1)[0]


def _choose(survey: Survey, name: str, vocab: str | Vocab) -> Vocab:
    if isinstance(vocab, Vocab):
        return vocab
    DataConfig(vocab=vocab)  # type: ignore[arg-type]  # it is what checks the name
    if vocab == "ascii":
        return Vocab.ascii()
    if vocab == "bytes":
        return Vocab.bytes()
    if vocab == "auto" and survey.is_ascii:
        _log.info("vocabulary: ascii (128 characters), because %s is plain ASCII", name)
        return Vocab.ascii()
    if vocab == "auto" and survey.not_utf8 is not None:
        _log.info("vocabulary: bytes (256), because %s is not UTF-8", name)
        return Vocab.bytes()
    chars = Vocab("chars", "".join(map(chr, np.flatnonzero(survey.seen))))
    if vocab == "auto":
        _log.info("vocabulary: chars (%d characters), because %s is UTF-8 beyond ASCII", chars.size, name)
    return chars


def _missing_error(open_text: Callable[[], BinaryIO], name: str, vocab: Vocab, missing: str, advice: str) -> UserError:
    """Names the characters that a vocabulary lacks, and where the first of them stands."""
    wanted = np.array([ord(character) for character in missing], np.uint32)
    line, column = 1, 1
    for points in code_points(open_text):
        places = np.flatnonzero(np.isin(points, wanted))
        before = points[: places[0]] if places.size else points
        newlines = np.flatnonzero(before == ord("\n"))
        line += len(newlines)
        column = len(before) - int(newlines[-1]) if newlines.size else column + len(before)
        if places.size:
            first = chr(points[places[0]])
            break
    others = missing.replace(first, "")
    also = f", and also {show_characters(others)}" if others else ""
    return UserError(
        f"{name} line {line}, column {column}: {show_characters(first)} is not in the {vocab.kind} "
        f"vocabulary{also}; {advice}"
    )
