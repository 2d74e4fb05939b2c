"""From a text file to ids, and to training and validation splits."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from charjax.array_types import Ids
from charjax.config import DataConfig
from charjax.data.survey import READ_BYTES, UNICODE_SIZE, _log, check_is_file, code_points, survey_for
from charjax.data.text_file import FileIds, TextFile
from charjax.data.vocab import Vocab, to_utf8
from charjax.distributed.processes import are_several, from_main, together
from charjax.errors import UserError
from charjax.host.memory import room_for_text

SAMPLED_PIECES, SAMPLED_BYTES = 64, 4096


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
    survey, chosen = survey_for(lambda: path.open("rb"), str(path), vocab, mark=True)
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
        table = np.full(UNICODE_SIZE, -1, np.int32)
        table[self.vocab.codes()] = np.arange(self.vocab.size, dtype=np.int32)
        for points in code_points(lambda: self.path.open("rb")):
            yield table[points]


def read_pieces(path: str | Path, vocab: str | Vocab = "auto") -> TextPieces:
    """Reads a text file of any size without holding it in memory; errors as `read_ids`, before the first piece."""
    check_is_file(path)
    path = Path(path)
    survey, chosen = survey_for(lambda: path.open("rb"), str(path), vocab)
    return TextPieces(path, chosen, survey.size if chosen.kind == "bytes" else survey.characters, survey.sha256)


def _encode_stream(open_text: Callable[[], BinaryIO], name: str, vocab: str | Vocab) -> tuple[np.ndarray, Vocab, str]:
    survey, chosen = survey_for(open_text, name, vocab)
    if chosen.kind == "bytes":
        with open_text() as file:
            return _read_bytes(file, survey.size), chosen, survey.sha256
    codes = chosen.codes()
    ids = np.empty(survey.characters, chosen.dtype)
    table = np.zeros(int(codes[-1]) + 1, chosen.dtype)
    table[codes] = np.arange(chosen.size, dtype=chosen.dtype)
    position = 0
    for points in code_points(open_text):
        ids[position : position + len(points)] = table[points]
        position += len(points)
    return ids, chosen, survey.sha256


def _read_bytes(file: BinaryIO, size: int) -> np.ndarray:
    """Reads `size` bytes to where they stay; what a file has lost since it was measured is left out."""
    ids = np.empty(size, np.uint8)
    position = 0
    while piece := file.read(min(READ_BYTES, size - position)):
        ids[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
        position += len(piece)
    return ids[:position]
