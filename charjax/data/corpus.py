"""Reads a text as ids: whole and split for training, or in pieces."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from charjax.array_types import Ids
from charjax.config import DataConfig
from charjax.data.survey import (
    READ_BYTES,
    UNICODE_SIZE,
    NotUTF8Error,
    OpenText,
    check_is_file,
    check_is_text,
    code_points,
    survey_text,
)
from charjax.data.text_file import FileIds, TextFile
from charjax.data.vocab import Vocab, to_utf8
from charjax.distributed.processes import are_several, from_main, together
from charjax.errors import UserError, check_type, checked_path, checked_whole
from charjax.host.memory import room_for_text

# The number of blocks of a file that a fingerprint covers, and the size of each.
FINGERPRINT_BLOCKS, FINGERPRINT_BYTES = 64, 4096

_log = logging.getLogger("charjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids, split into a training and a validation part.

    Attributes:
        train: [N] ids, the first `train_frac` of the text: a NumPy array, or `FileIds` if they stay in the file.
        validation: [M] ids, the rest.
        vocab: the characters.
        train_frac: the requested fraction.
        name: name of the file.
        path: absolute path of the file; empty if there is none.
        sha256: hex digest of the text's bytes, by which a resumed run recognizes its text.

    Examples:
        >>> from charjax import Corpus
        >>> corpus = Corpus.from_text("to be or not to be", train_frac=0.5)
        >>> corpus.vocab.decode(corpus.train)
        'to be or '
        >>> len(corpus.validation)
        9
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
            path: the file; UTF-8, whose byte order mark is left out, or anything for the vocabulary "bytes".
            vocab: "ascii", "chars", "bytes", "auto" (the first of these that fits the file), or a `Vocab`.
            train_frac: fraction of the characters to train on, in (0, 1); the rest, at the end, is for validation.
            memory_mb: megabytes that the text may take; a larger one stays in its file and is read on demand. The
                default is a quarter of the available memory.

        Raises:
            UserError: the path is not a file; the file is compressed, a document or in UTF-16; the text is too short to
                split; or the vocabulary lacks characters of it.
            OSError: the file cannot be read.
        """
        DataConfig(train_frac=train_frac)
        ids, chosen, sha256 = read_ids(path, vocab, memory_mb=memory_mb)
        resolved = Path(path).resolve()
        return cls._split(ids, chosen, train_frac, resolved.name, str(resolved), sha256, shown=str(path))

    @classmethod
    def from_text(
        cls, text: str, *, vocab: str | Vocab = "auto", train_frac: float = 0.9, name: str = "text"
    ) -> "Corpus":
        """Makes a corpus of a string; arguments and errors as for `from_file`."""
        DataConfig(train_frac=train_frac)
        content = to_utf8(text)
        pieces = TextPieces.of(lambda: BytesIO(content), name, vocab)
        return cls._split(pieces.read_all(), pieces.vocab, train_frac, name, "", pieces.sha256, shown=name)

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
                f"{len(ids) - cut} to validate, but each split needs 2; choose --train-frac closer to 0.5, "
                "or a longer text"
            )
        if isinstance(ids, FileIds):
            train, validation = ids.part(0, cut), ids.part(cut, len(ids))
            return cls(train, validation, vocab, train_frac, name, path, sha256)
        return cls(ids[:cut], ids[cut:], vocab, train_frac, name, path, sha256)


def read_ids(
    path: str | Path, vocab: str | Vocab = "auto", *, memory_mb: int | None = None
) -> tuple[np.ndarray | FileIds, Vocab, str]:
    """Reads a text file as `Corpus.from_file` does -> (ids [N], vocabulary, hex SHA-256 of the file)."""
    path = checked_path("path", path)
    if are_several():
        return _open_together(path, vocab)
    check_is_file(path)
    budget = room_for_text() if memory_mb is None else 1_000_000 * checked_whole("memory_mb", memory_mb, least=0)
    if budget is not None and path.stat().st_size > budget:
        _log.info("%s does not fit in its memory budget and is read from disk as needed", path)
        file, sha256 = _open_text(path, vocab)
        return FileIds(file, 0, file.characters), file.vocab, sha256
    text = read_pieces(path, vocab)
    return text.read_all(), text.vocab, text.sha256


def _open_together(path: Path, vocab: str | Vocab) -> tuple[FileIds, Vocab, str]:
    """Opens a text in several processes: the main one reads all of it, the others only what they train on."""

    def survey() -> dict[str, Any]:
        check_is_file(path)
        file, sha256 = _open_text(path, vocab)
        return {"file": file.to_dict(), "sha256": sha256, "fingerprint": _fingerprint(path)}

    found = from_main(survey)
    with together():
        check_is_file(path)
        file = TextFile.from_dict(found["file"], path.resolve())
        if _fingerprint(path) != found["fingerprint"]:
            raise UserError(f"{path} has different text here than in process 0; give every process the same text")
    return FileIds(file, 0, file.characters), file.vocab, found["sha256"]


def _fingerprint(path: Path) -> str:
    """Returns the hex SHA-256 of blocks spread evenly over a file: enough to tell apart all but very similar texts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        last = max(path.stat().st_size - FINGERPRINT_BYTES, 0)
        for block in range(FINGERPRINT_BLOCKS):
            file.seek(last * block // (FINGERPRINT_BLOCKS - 1))
            digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _open_text(path: Path, vocab: str | Vocab) -> tuple[TextFile, str]:
    """Surveys a text that stays in its file -> (the file, hex SHA-256)."""
    check_is_text(path, vocab)
    before = path.stat()
    survey, chosen = survey_text(lambda: path.open("rb"), str(path), vocab, index=True)
    one_byte_each = survey.is_ascii or chosen.kind == "bytes"
    characters = survey.size if chosen.kind == "bytes" else survey.characters
    file = TextFile(
        path=path.resolve(),
        vocab=chosen,
        characters=characters,
        first_byte=survey.size - characters if one_byte_each else 0,
        index=None if one_byte_each else survey.index,
        size=before.st_size,
        modified=before.st_mtime_ns,
    )
    return file, survey.sha256


@dataclasses.dataclass(frozen=True)
class TextPieces:
    """A text that yields its ids in pieces; see `read_pieces`.

    Attributes:
        name: the text's name in error messages.
        open_text: opens the text, from its beginning each time.
        vocab: its characters.
        size: number of ids.
        sha256: hex digest of its bytes.
    """

    name: str
    open_text: OpenText
    vocab: Vocab
    size: int
    sha256: str

    @classmethod
    def of(cls, open_text: OpenText, name: str, vocab: str | Vocab) -> "TextPieces":
        """Surveys a text; arguments and errors as for `survey_text`."""
        survey, chosen = survey_text(open_text, name, vocab)
        size = survey.size if chosen.kind == "bytes" else survey.characters
        return cls(name, open_text, chosen, size, survey.sha256)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields ids [n], n > 0.

        Raises:
            UserError: the text has changed since it was surveyed.
        """
        left, changed = self.size, UserError(f"{self.name} changed while it was read; make a copy and use that")
        try:
            for ids in self._bytes() if self.vocab.kind == "bytes" else self._characters():
                left -= len(ids)
                if left < 0 or np.any(ids < 0):
                    raise changed
                if len(ids):
                    yield ids.astype(self.vocab.dtype)
        except NotUTF8Error:
            raise changed from None
        if left:
            raise changed

    def read_all(self) -> np.ndarray:
        """Reads the whole text into memory and returns ids [size]."""
        ids, position = np.empty(self.size, self.vocab.dtype), 0
        for piece in self:
            ids[position : position + len(piece)] = piece
            position += len(piece)
        return ids

    def _bytes(self) -> Iterator[np.ndarray]:
        with self.open_text() as file:
            while chunk := file.read(READ_BYTES):
                yield np.frombuffer(chunk, np.uint8)

    def _characters(self) -> Iterator[np.ndarray]:
        table = np.full(UNICODE_SIZE, -1, np.int32)
        table[self.vocab.codes()] = np.arange(self.vocab.size, dtype=np.int32)
        for points in code_points(self.open_text):
            yield table[points]


def check_corpus(corpus: Corpus) -> None:
    """Checks that a corpus is one; a UserError otherwise."""
    check_type("corpus", corpus, Corpus, "make one with Corpus.from_file or Corpus.from_text")


def read_pieces(path: str | Path, vocab: str | Vocab = "auto") -> TextPieces:
    """Reads a text file of any size in pieces of a few megabytes.

    Args:
        path: the file.
        vocab: as in `Corpus.from_file`.

    Returns:
        An iterable of ids [n]; each iteration reads the file from its beginning.

    Raises:
        UserError: as for `Corpus.from_file`; during iteration, also if the file has changed.

    Examples:
        >>> import pathlib, tempfile
        >>> from charjax import read_pieces
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "text.txt")
        ...     _ = path.write_text("abcab")
        ...     [piece.tolist() for piece in read_pieces(path, "chars")]
        [[0, 1, 2, 0, 1]]
    """
    path = checked_path("path", path)
    check_is_file(path)
    check_is_text(path, vocab)
    return TextPieces.of(lambda: path.open("rb"), str(path), vocab)
