"""Reads text as ids, either in full and split for training or in pieces."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from charjax.array_types import Ids
from charjax.config import DataConfig, OnUnknown
from charjax.data.survey import check_is_text, survey_texts
from charjax.data.text_file import FileIds, TextFile
from charjax.data.text_source import (
    STANDARD_INPUT,
    Spool,
    TextPath,
    TextPaths,
    TextSource,
    as_list,
    in_memory,
    name_of,
    open_text,
    text_files,
)
from charjax.data.vocab import Vocab, check_on_unknown, to_utf8
from charjax.distributed.processes import are_several, from_main, together
from charjax.errors import UserError, check_type, checked_path, checked_whole
from charjax.host.memory import room_for_text

# Number of blocks of text that a fingerprint covers, and their size.
FINGERPRINT_BLOCKS, FINGERPRINT_BYTES = 64, 4096
# Number of characters in a piece of text.
PIECE = 1 << 22

# Called with the digests of the training text and, if it is separate, the validation text.
Recognize = Callable[[list[str]], None]

_log = logging.getLogger("charjax")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Text as ids, split into a training and a validation part.

    Attributes:
        train: [N] ids, the first `train_frac` of the text, as a NumPy array, or as `FileIds` if they stay on disk.
        validation: [M] ids, the rest of the text or separate validation text.
        vocab: the vocabulary.
        train_frac: the requested fraction.
        name: name of the file, or of the first file if there are more.
        sha256: hex digest of the text's bytes, by which a resumed run recognizes it.
        paths: absolute paths of the files, folders and patterns; empty if the text did not come from files.
        separator: text inserted between files; None for a line break.
        validation_path: absolute path of separate validation text; None if there is none.
        validation_sha256: hex digest of separate validation text; empty if there is none.

    Examples:
        >>> from charjax import Corpus
        >>> corpus = Corpus.from_text("to be or not to be", train_frac=0.5)
        >>> print(corpus)
        Corpus(name='text', train=<9 ids>, validation=<9 ids>, vocab=<ascii, 128 characters>)
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
    sha256: str
    paths: tuple[str, ...] = ()
    separator: str | None = None
    validation_path: str | None = None
    validation_sha256: str = ""

    def __repr__(self) -> str:
        """Returns a single line with sizes instead of the text and the vocabulary."""
        vocab = f"<{self.vocab.kind}, {self.vocab.size} characters>"
        sizes = f"train=<{len(self.train):,} ids>, validation=<{len(self.validation):,} ids>, vocab={vocab}"
        return f"Corpus(name={self.name!r}, {sizes})"

    @property
    def path(self) -> str:
        """The absolute path if there is exactly one; otherwise empty."""
        return self.paths[0] if len(self.paths) == 1 else ""

    @classmethod
    def from_file(
        cls,
        path: TextPaths,
        *,
        vocab: str | Vocab = "auto",
        train_frac: float = 0.9,
        separator: str | None = None,
        validation: TextPath | None = None,
        memory_mb: int | None = None,
    ) -> "Corpus":
        """Reads text of any size.

        Args:
            path: a file, a folder (all files below it except hidden ones), a pattern such as "books/*.txt", "-" for
                standard input, or a list of these, read one after another. Files must be UTF-8, with an optional byte
                order mark that is ignored, unless the vocabulary is "bytes". Files whose names end in .gz, .bz2, .xz or
                .zst are decompressed; from .jsonl files, the "text" field of each line is read.
            vocab: "ascii", "chars", "bytes", "auto" (the first of these that fits the text), or a `Vocab`.
            train_frac: fraction of the characters to train on, in (0, 1); the rest, at the end, is for validation.
            separator: text inserted between files or .jsonl records; by default a line break, unless the preceding text
                already ends with one.
            validation: separate text for validation; all of `path` is then used for training.
            memory_mb: megabytes that the text may take up; larger text stays on disk and is read on demand. The default
                is a quarter of the available memory.

        Raises:
            UserError: a file does not exist, is damaged, is a document or is in UTF-16; the text is too short to split;
                or some of its characters are not in the vocabulary.
            OSError: a file cannot be read.
        """
        held_out = None if validation is None else str(checked_path("validation", validation))
        data = DataConfig(train_frac=train_frac, separator=separator, validation=held_out)
        return read_corpus(path, data, vocab, memory_mb=memory_mb)

    @classmethod
    def from_text(
        cls, text: str, *, vocab: str | Vocab = "auto", train_frac: float = 0.9, name: str = "text"
    ) -> "Corpus":
        """Builds a corpus from a string, with the arguments and errors of `from_file`."""
        DataConfig(train_frac=train_frac)
        (file,) = survey_texts([TextSource(name, [in_memory(name, to_utf8(text))])], vocab)
        train, validation = _split(TextPieces(file).read_all(), train_frac, name)
        return cls(train, validation, file.vocab, train_frac, name, file.sha256)


def read_corpus(
    texts: TextPaths,
    data: DataConfig,
    vocab: str | Vocab,
    *,
    memory_mb: int | None = None,
    recognize: Recognize | None = None,
    base: Vocab | None = None,
) -> Corpus:
    """Reads text as `Corpus.from_file` does, ignoring `data.vocab`; a vocabulary chosen by kind extends `base`.

    Raises:
        UserError: as for `Corpus.from_file`, or a file is in both the training and the validation text.
        OSError: a file cannot be read.
    """
    wanted: list[TextPaths] = [texts] if data.validation is None else [texts, data.validation]
    (file, ids), *held_out = _read(
        wanted, vocab, separator=data.separator, memory_mb=memory_mb, recognize=recognize, base=base
    )
    if held_out:
        train, validation = cast(Ids, ids), cast(Ids, held_out[0][1])
        for one in (file, held_out[0][0]):
            if one.characters < 2:
                raise UserError(f"{one.source.name} has 1 character; with --validation, each text needs at least 2")
    else:
        train, validation = _split(ids, data.train_frac, file.source.name)
    given = [Path(text) for text in as_list(texts)]
    return Corpus(
        train,
        validation,
        file.vocab,
        data.train_frac,
        name=name_of([path.resolve().name if path != STANDARD_INPUT else path for path in given]),
        sha256=file.sha256,
        paths=tuple(map(_absolute, given)),
        separator=data.separator,
        validation_path=None if data.validation is None else _absolute(Path(data.validation)),
        validation_sha256=held_out[0][0].sha256 if held_out else "",
    )


def _absolute(path: Path) -> str:
    return str(path if path == STANDARD_INPUT else path.resolve())


def _split(ids: Any, train_frac: float, name: str) -> tuple[Ids, Ids]:
    """Divides an array or `FileIds` into a training and a validation part."""
    if len(ids) < 4:
        plural = "" if len(ids) == 1 else "s"
        raise UserError(f"{name} has {len(ids)} character{plural}; at least 4 are needed, two for each split")
    cut = round(train_frac * len(ids))
    if not 2 <= cut <= len(ids) - 2:
        raise UserError(
            f"train_frac {train_frac} leaves {cut} of the {len(ids)} characters in {name} to train on and "
            f"{len(ids) - cut} to validate on, but each split needs 2; choose a --train-frac closer to 0.5, "
            "or use longer text"
        )
    if isinstance(ids, FileIds):
        return ids.part(0, cut), ids.part(cut, len(ids))
    return ids[:cut], ids[cut:]


def read_ids(
    path: TextPaths,
    vocab: str | Vocab = "auto",
    *,
    separator: str | None = None,
    memory_mb: int | None = None,
    on_unknown: OnUnknown | None = None,
) -> tuple[np.ndarray | FileIds, Vocab, str]:
    """Reads text as `Corpus.from_file` does and returns (ids [N], vocabulary, hex SHA-256 of the text)."""
    ((file, ids),) = _read([path], vocab, separator=separator, memory_mb=memory_mb, on_unknown=on_unknown)
    return ids, file.vocab, file.sha256


def _read(
    texts: Sequence[TextPaths],
    vocab: str | Vocab,
    *,
    separator: str | None = None,
    memory_mb: int | None = None,
    on_unknown: OnUnknown | None = None,
    recognize: Recognize | None = None,
    base: Vocab | None = None,
) -> list[tuple[TextFile, np.ndarray | FileIds]]:
    """Reads texts into memory, or only opens them if they do not fit or there are multiple processes."""
    budget = room_for_text() if memory_mb is None else 1_000_000 * checked_whole("memory_mb", memory_mb, least=0)
    if are_several():
        files = _open_together(lambda: _open(texts, vocab, budget, separator), vocab, recognize, base)
        return [(file, FileIds(file, 0, file.characters)) for file in files]
    sources = _open(texts, vocab, budget, separator)
    fits = budget is None or sum(source.size for source in sources) <= budget
    if not fits:
        _log.info("%s does not fit in its memory budget and is read from disk as needed", sources[0].name)
    files = survey_texts(sources, vocab, on_unknown=on_unknown, recognize=recognize, base=base)
    return [(file, TextPieces(file).read_all() if fits else FileIds(file, 0, file.characters)) for file in files]


def _open(
    texts: Sequence[TextPaths], vocab: str | Vocab, budget: int | None, separator: str | None = None
) -> list[TextSource]:
    """Opens texts that have no file in common."""
    spool, sources, seen = Spool(budget), list[TextSource](), set[Path]()
    for text in texts:
        if are_several() and STANDARD_INPUT in text_files(text):
            raise UserError("multiple processes cannot share standard input; use a file")
        source = open_text(text, spool, separator=separator)
        for part in source.parts:
            check_is_text(part, vocab)
        files = {path.resolve() for path in source.files}
        if files & seen:
            both = "is in both the training and the validation text"
            raise UserError(f"{min(files & seen)} {both}; remove it from one of them")
        seen |= files
        sources.append(source)
    return sources


def _open_together(
    open_texts: Callable[[], list[TextSource]], vocab: str | Vocab, recognize: Recognize | None, base: Vocab | None
) -> list[TextFile]:
    """Opens texts in multiple processes; the main one reads all of them, and the others only what they train on."""
    opened = functools.cache(open_texts)

    def survey() -> list[dict[str, Any]]:
        files = survey_texts(opened(), vocab, recognize=recognize, base=base)
        return [{"file": file.to_dict(), "fingerprint": _fingerprint(file.source)} for file in files]

    found = from_main(survey)
    with together():
        files = []
        for source, one in zip(opened(), found, strict=True):
            files.append(TextFile.from_dict(one["file"], source))
            if _fingerprint(source) != one["fingerprint"]:
                raise UserError(
                    f"{source.name} has different text here than in process 0; use the same text in all processes"
                )
    return files


def _fingerprint(source: TextSource) -> str:
    """Returns the hex SHA-256 of blocks spread evenly over the text, which tells apart all but very similar texts."""
    digest = hashlib.sha256()
    last = max(source.size - FINGERPRINT_BYTES, 0)
    for block in range(FINGERPRINT_BLOCKS):
        start = last * block // (FINGERPRINT_BLOCKS - 1)
        digest.update(source.read(start, min(start + FINGERPRINT_BYTES, source.size)))
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class TextPieces:
    """Text that yields its ids in pieces; see `read_pieces`."""

    file: TextFile

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the text."""
        return self.file.vocab

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.file.characters

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields ids [n], n > 0; raises UserError if the text has changed since it was surveyed."""
        for start in range(0, self.size, PIECE):
            yield self.file.read(start, min(start + PIECE, self.size))

    def read_all(self) -> np.ndarray:
        """Reads the full text into memory and returns ids [size]."""
        ids, position = np.empty(self.size, self.vocab.dtype), 0
        for piece in self:
            ids[position : position + len(piece)] = piece
            position += len(piece)
        return ids


def check_corpus(corpus: Corpus) -> None:
    """Checks that an argument is a `Corpus`; raises UserError otherwise."""
    check_type("corpus", corpus, Corpus, "make one with Corpus.from_file or Corpus.from_text")


def read_pieces(
    path: TextPaths, vocab: str | Vocab = "auto", *, separator: str | None = None, on_unknown: OnUnknown = "error"
) -> TextPieces:
    """Reads text of any size in pieces of a few megabytes.

    Args:
        path: a file, folder or pattern, or a list of them, as in `Corpus.from_file`.
        vocab: as in `Corpus.from_file`.
        separator: as in `Corpus.from_file`.
        on_unknown: what to do about characters not in the vocabulary, as in `Vocab.encode`.

    Returns:
        An iterable of ids [n]; each iteration reads the text from its beginning.

    Raises:
        UserError: as for `Corpus.from_file`, or, during iteration, a file has changed.

    Examples:
        >>> import pathlib, tempfile
        >>> from charjax import read_pieces
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "text.txt")
        ...     _ = path.write_text("abcab")
        ...     [piece.tolist() for piece in read_pieces(path, "chars")]
        [[0, 1, 2, 0, 1]]
    """
    separator = DataConfig(separator=separator).separator
    (source,) = _open([path], vocab, room_for_text(), separator)
    (file,) = survey_texts([source], vocab, on_unknown=check_on_unknown(on_unknown))
    return TextPieces(file)
