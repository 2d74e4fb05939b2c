"""From a text file to ids, and to training and validation splits."""

import codecs
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from charjax.capacity import room_for_text
from charjax.config import DataConfig
from charjax.errors import UserError
from charjax.processes import are_several, from_main, together
from charjax.text_file import MARK, FileIds, TextFile
from charjax.types import Ids
from charjax.vocab import Vocab, show_characters, to_utf8

SAMPLED_PIECES, SAMPLED_BYTES = 64, 4096

# Bytes read at a time: a file is never in memory but as ids.
READ_BYTES = 1 << 22
_UNICODE_SIZE = 0x110000
_BOM = 0xFEFF
_BOM_BYTES = codecs.BOM_UTF8

_log = logging.getLogger("charjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids, split in two.

    Attributes:
        train: [N] ids, the text's first `train_frac`: a NumPy array, or `FileIds` where the text stays in its file.
        validation: [M] ids, the rest.
        vocab: the characters.
        train_frac: the fraction asked for.
        name: name of the file.
        path: absolute path of the file, empty for a text that came from none.
        sha256: hex digest of the text's bytes, by which a resumed run knows its text.
    """

    train: Ids
    validation: Ids
    vocab: Vocab
    train_frac: float
    name: str
    path: str
    sha256: str

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        vocab: str | Vocab = "auto",
        train_frac: float = 0.9,
        memory_mb: int | None = None,
    ) -> "Corpus":
        """Reads a text file of any size.

        Args:
            path: the file, UTF-8 without its byte order mark for every vocabulary but "bytes", which takes all.
            vocab: "ascii", "chars", "bytes", "auto" (the first of these that the file allows), or a `Vocab`.
            train_frac: fraction of the characters to train on, in (0, 1); the rest, at the end, is for validation.
            memory_mb: megabytes that the text may take; a larger one stays in its file and is read part by part while
                it is used. By default a quarter of the memory that is free.

        Raises:
            UserError: no such file, a folder, a pipe, a text too short to split, characters that the vocabulary lacks.
            OSError: a file that may not be read.
        """
        DataConfig(train_frac=train_frac)
        ids, chosen, sha256 = read_ids(path, vocab, memory_mb=memory_mb)
        resolved = Path(path).resolve()
        return cls._split(ids, chosen, train_frac, resolved.name, str(resolved), sha256, shown=str(path))

    @classmethod
    def from_text(
        cls, text: str, *, vocab: str | Vocab = "auto", train_frac: float = 0.9, name: str = "text"
    ) -> "Corpus":
        """Takes a text from memory; see `from_file`."""
        DataConfig(train_frac=train_frac)
        content = to_utf8(text)
        ids, chosen, sha256 = _encode_stream(lambda: io.BytesIO(content), name, vocab)
        return cls._split(ids, chosen, train_frac, name, "", sha256, shown=name)

    @classmethod
    def _split(
        cls,
        ids: np.ndarray | FileIds,
        vocab: Vocab,
        train_frac: float,
        name: str,
        path: str,
        sha256: str,
        *,
        shown: str,
    ) -> "Corpus":
        if len(ids) < 4:
            plural = "" if len(ids) == 1 else "s"
            raise UserError(f"{shown} has {len(ids)} character{plural}; a text needs at least 4, two for each split")
        cut = round(train_frac * len(ids))
        if not 2 <= cut <= len(ids) - 2:
            raise UserError(
                f"train_frac {train_frac} leaves {cut} of {shown}'s {len(ids)} characters to train on and "
                f"{len(ids) - cut} to validate; each needs at least 2: choose --train-frac nearer to 0.5, "
                "or a longer text"
            )
        if isinstance(ids, FileIds):
            train, validation = ids.part(0, cut), ids.part(cut, len(ids))
            return cls(train, validation, vocab, train_frac, name, path, sha256)
        return cls(ids[:cut], ids[cut:], vocab, train_frac, name, path, sha256)


def read_ids(
    path: str | Path, vocab: str | Vocab = "auto", *, memory_mb: int | None = None
) -> tuple[np.ndarray | FileIds, Vocab, str]:
    """Reads a text file: -> (ids [N], the vocabulary, hex SHA-256 of the file); see `Corpus.from_file`."""
    path = Path(path)
    if are_several():
        return _open_together(path, vocab)
    check_is_file(path)
    budget = room_for_text() if memory_mb is None else memory_mb * 1_000_000
    if budget is not None and path.stat().st_size > budget:
        _log.info("%s stays in its file: its parts are read as they are needed", path)
        file, sha256 = _open_text(path, vocab)
        return FileIds(file, 0, file.characters), file.vocab, sha256
    return _encode_stream(lambda: path.open("rb"), str(path), vocab)


def _open_together(path: Path, vocab: str | Vocab) -> tuple[FileIds, Vocab, str]:
    """Opens a text in processes that train together: one reads it through, the others what they need of it."""

    def survey() -> bytes:
        check_is_file(path)
        file, sha256 = _open_text(path, vocab)
        return json.dumps({"file": file.to_dict(), "sha256": sha256, "sample": _sampled(path)}).encode()

    told = json.loads(from_main(survey))
    with together():
        check_is_file(path)
        file = TextFile.from_dict(told["file"], path.resolve())
        if _sampled(path) != told["sample"]:
            raise UserError(f"{path} has another text here than where it was read first")
    return FileIds(file, 0, file.characters), file.vocab, told["sha256"]


def _sampled(path: Path) -> str:
    """Hex SHA-256 of pieces spread over a file, of all of a small one: tells texts apart that are not nearly alike."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        last = max(path.stat().st_size - SAMPLED_BYTES, 0)
        for piece in range(SAMPLED_PIECES):
            file.seek(last * piece // (SAMPLED_PIECES - 1))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def _open_text(path: Path, vocab: str | Vocab) -> tuple[TextFile, str]:
    """Reads a text that stays in its file for the first time: -> (what is known of it, hex SHA-256)."""
    before = path.stat()
    survey, chosen = _survey_for(lambda: path.open("rb"), str(path), vocab, mark=True)
    one_byte_each = survey.is_ascii or chosen.kind == "bytes"
    characters = survey.size if chosen.kind == "bytes" else survey.characters
    file = TextFile(
        path=path.resolve(),
        vocab=chosen,
        characters=characters,
        first_byte=survey.size - characters if one_byte_each else 0,
        marks=None if one_byte_each else np.array(survey.marks, np.int64),
        size=before.st_size,
        modified=before.st_mtime_ns,
    )
    return file, survey.sha256


def read_all_ids(path: str | Path, vocab: str | Vocab = "auto") -> np.ndarray:
    """Reads a whole text file into memory: ids [N]; see `Corpus.from_file`."""
    check_is_file(path)
    return _encode_stream(lambda: Path(path).open("rb"), str(path), vocab)[0]


@dataclasses.dataclass(frozen=True)
class TextPieces:
    """A text file as ids, a piece at a time; each iteration reads it from its beginning.

    Attributes:
        path: the file.
        vocab: its characters.
        size: number of ids.
        sha256: hex digest of the file.
    """

    path: Path
    vocab: Vocab
    size: int
    sha256: str

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields ids [n], n > 0.

        Raises:
            UserError: the file has changed since it was first read.
        """
        left, changed = self.size, UserError(f"{self.path} changed while it was read; give a copy of it")
        try:
            for ids in self._bytes() if self.vocab.kind == "bytes" else self._characters():
                left -= len(ids)
                if left < 0 or np.any(ids < 0):
                    raise changed
                if len(ids):
                    yield ids.astype(self.vocab.dtype)
        except UnicodeDecodeError:
            raise changed from None
        if left:
            raise changed

    def _bytes(self) -> Iterator[np.ndarray]:
        with self.path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                yield np.frombuffer(piece, np.uint8)

    def _characters(self) -> Iterator[np.ndarray]:
        table = np.full(_UNICODE_SIZE, -1, np.int32)
        table[self.vocab.codes()] = np.arange(self.vocab.size, dtype=np.int32)
        for points in _code_points(lambda: self.path.open("rb")):
            yield table[points]


def read_pieces(path: str | Path, vocab: str | Vocab = "auto") -> TextPieces:
    """Reads a text file of any size without holding it in memory; errors as `read_ids`, before the first piece."""
    check_is_file(path)
    path = Path(path)
    survey, chosen = _survey_for(lambda: path.open("rb"), str(path), vocab)
    return TextPieces(path, chosen, survey.size if chosen.kind == "bytes" else survey.characters, survey.sha256)


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
class _Survey:
    """What a first reading finds: size, digest, which code points occur, and what no vocabulary could take."""

    size: int = 0
    characters: int = 0
    not_utf8: int | None = None  # byte offset
    seen: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_UNICODE_SIZE, bool))
    sha256: str = ""
    marks: list[int] = dataclasses.field(default_factory=list)  # as `TextFile` has them, if they were asked for

    @property
    def is_ascii(self) -> bool:
        return self.not_utf8 is None and not self.seen[128:].any()


def _encode_stream(open_text: Callable[[], BinaryIO], name: str, vocab: str | Vocab) -> tuple[np.ndarray, Vocab, str]:
    survey, chosen = _survey_for(open_text, name, vocab)
    if chosen.kind == "bytes":
        with open_text() as file:
            return _read_bytes(file, survey.size), chosen, survey.sha256
    codes = chosen.codes()
    ids = np.empty(survey.characters, chosen.dtype)
    table = np.zeros(int(codes[-1]) + 1, chosen.dtype)
    table[codes] = np.arange(chosen.size, dtype=chosen.dtype)
    position = 0
    for points in _code_points(open_text):
        ids[position : position + len(points)] = table[points]
        position += len(points)
    return ids, chosen, survey.sha256


def _survey_for(
    open_text: Callable[[], BinaryIO], name: str, vocab: str | Vocab, *, mark: bool = False
) -> tuple[_Survey, Vocab]:
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


def _read_bytes(file: BinaryIO, size: int) -> np.ndarray:
    """Reads `size` bytes to where they stay; what a file has lost since it was measured is left out."""
    ids = np.empty(size, np.uint8)
    position = 0
    while piece := file.read(min(READ_BYTES, size - position)):
        ids[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
        position += len(piece)
    return ids[:position]


def _survey(open_text: Callable[[], BinaryIO], *, mark: bool) -> _Survey:
    found, digest = _Survey(), hashlib.sha256()
    with open_text() as file:
        for chunk in iter(lambda: file.read(READ_BYTES), b""):
            digest.update(chunk)
            found.size += len(chunk)
    found.sha256 = digest.hexdigest()
    try:
        offset = len(_BOM_BYTES) if _begins_with_mark(open_text) else 0
        for points in _code_points(open_text):
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


def _mark(found: _Survey, points: np.ndarray, offset: int) -> int:
    """Notes the byte offset of every `MARK`th character among the next ones: -> how many bytes they take."""
    ends = np.cumsum(1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF))
    for place in range(-found.characters % MARK, len(points), MARK):
        found.marks.append(offset + (int(ends[place - 1]) if place else 0))
    return int(ends[-1]) if len(ends) else 0


def _code_points(open_text: Callable[[], BinaryIO]) -> Iterator[np.ndarray]:
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


def _choose(survey: _Survey, name: str, vocab: str | Vocab) -> Vocab:
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
    for points in _code_points(open_text):
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
