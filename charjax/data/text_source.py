"""Provides the bytes of text from one or more files, readable at any offset, and locates a byte in the files."""

import bisect
import codecs
import dataclasses
import functools
import glob
import itertools
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from charjax.data.file_formats import contents, gap, is_compressed, is_json_lines, json_lines
from charjax.data.vocab import to_utf8
from charjax.errors import UserError, checked_path
from charjax.host.atomic_file import naming

# One or more paths of files and folders, or patterns such as "books/*.txt".
TextPath = str | os.PathLike[str]
TextPaths = TextPath | Sequence[TextPath]

# Number of bytes read at a time.
READ_BYTES = 1 << 22
STANDARD_INPUT = Path("-")


def check_is_file(path: Path) -> None:
    """Checks that text can be read from a path more than once.

    Raises:
        UserError: the path does not exist, or is a pipe or device.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; use a text file")
    if not path.is_file():
        raise UserError(f"{path} is a pipe or device; use a text file, or - to read standard input")


def text_files(texts: TextPaths) -> list[Path]:
    """Expands folders to all files below them except hidden ones, and patterns to their matches, each in sorted order.

    Raises:
        UserError: a folder has no files, nothing matches a pattern, standard input is passed twice, or an argument is
            not a path.
    """
    files: list[Path] = []
    if not as_list(texts):
        raise UserError("path must not be an empty list")
    for text in as_list(texts):
        path = checked_path("path", text)
        if path.exists() or path == STANDARD_INPUT or not glob.has_magic(str(path)):
            found = [path]
        else:
            found = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not found:
                raise UserError(f"no file matches {path}; correct the pattern")
        for one in found:
            files += _files_below(one) if one.is_dir() else [one]
    if files.count(STANDARD_INPUT) > 1:
        raise UserError("standard input can be read only once; use a single -")
    return files


def as_list(texts: TextPaths) -> Sequence[TextPath]:
    """Returns one or more paths as a list."""
    return texts if isinstance(texts, list | tuple) else [texts]  # type: ignore[list-item]


def _files_below(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    if all((folder / name).is_file() for name in ("config.json", "model.safetensors")):
        raise UserError(f"{folder} is the folder of a run or model, not of text; to train on from it, use --init-from")
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = sorted(path for path in files if path.is_file())
    if not files:
        raise UserError(f"{folder} contains no files; use a text file, or a folder of text files")
    return files


def changed(name: str) -> UserError:
    """Returns the error for text that has changed since it was first read."""
    return UserError(f"{name} changed while it was in use; make a copy and use that")


@dataclasses.dataclass(frozen=True)
class Part:
    """Part of the text: a file, or the separator between two files.

    Attributes:
        name: name for use in messages.
        size: number of bytes.
        read: function that reads bytes [start, stop) of the file.
        skipped: number of bytes at the beginning of the file that are left out, for a byte order mark.
        records: for JSON Lines, yields the line number and content of each text; None for other files.
    """

    name: str
    size: int
    read: Callable[[int, int], bytes]
    skipped: int = 0
    records: Callable[[], Iterator[tuple[int, bytes]]] | None = None

    def bytes(self, start: int, stop: int) -> bytes:
        """Reads bytes [start, stop)."""
        return self.read(self.skipped + start, self.skipped + stop)

    def without_mark(self) -> "Part":
        """Returns the part without a leading byte order mark."""
        mark = len(codecs.BOM_UTF8)
        if self.bytes(0, min(mark, self.size)) != codecs.BOM_UTF8:
            return self
        return dataclasses.replace(self, size=self.size - mark, skipped=mark)


def _plain(path: Path) -> Part:
    """Opens a file without memory-mapping it, so that a read reports if it shrinks, which would crash a mapping."""
    absolute, before = path.absolute(), path.stat()

    def read(start: int, stop: int) -> bytes:
        with naming(path), absolute.open("rb") as file:
            now = os.fstat(file.fileno())
            file.seek(start)
            content = file.read(stop - start)
        is_same = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if not is_same or len(content) < stop - start:
            raise changed(str(path))
        return content

    return Part(str(path), before.st_size, read)


def in_memory(name: str, content: bytes) -> Part:
    """Returns a part with the given bytes."""
    return Part(name, len(content), lambda start, stop: content[start:stop])


class Spool:
    """Copies texts that cannot be read at an offset, into memory or, beyond a budget, into an unnamed file."""

    def __init__(self, budget: int | None) -> None:
        """Starts with no copies; the budget is in bytes, with None for no limit."""
        limit = 0 if budget is None else max(budget, 1)  # 0 means no limit
        self._file = tempfile.SpooledTemporaryFile(max_size=limit)  # noqa: SIM115 -- open as long as the text
        self._size, self._lock = 0, threading.Lock()
        weakref.finalize(self, self._file.close)

    def add(
        self,
        name: str,
        chunks: Iterable[bytes],
        records: Callable[[], Iterator[tuple[int, bytes]]] | None = None,
    ) -> Part:
        """Copies text that comes in chunks; the other arguments are those of `Part`."""
        begin = self._size
        self._file.seek(begin)
        for chunk in chunks:
            with naming(Path(tempfile.gettempdir())):
                self._file.write(chunk)
            self._size += len(chunk)
        return Part(
            name, self._size - begin, lambda start, stop: self._read(begin + start, begin + stop), records=records
        )

    def _read(self, start: int, stop: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)


@dataclasses.dataclass(frozen=True, eq=False)
class TextSource:
    """Text as bytes.

    Attributes:
        name: name for use in messages.
        parts: parts of the text, in order.
        files: the files that they come from.
    """

    name: str
    parts: Sequence[Part]
    files: Sequence[Path] = ()

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(part.size for part in self.parts))

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self._ends[-1] if self.parts else 0

    @functools.cached_property
    def mark(self) -> int:
        """Number of bytes in the leading byte order mark; 0 if there is none."""
        mark = codecs.BOM_UTF8
        return len(mark) if self.read(0, min(len(mark), self.size)) == mark else 0

    def read(self, start: int, stop: int) -> bytes:
        """Reads bytes [start, stop).

        Raises:
            UserError: a file has changed since it was opened.
            OSError: a file can no longer be read.
        """
        pieces = []
        while start < stop:
            number, offset = self._locate(start)
            piece = self.parts[number].bytes(offset, min(stop - start + offset, self.parts[number].size))
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunks(self) -> Iterator[bytes]:
        """Reads all of the text, `READ_BYTES` at a time."""
        for start in range(0, self.size, READ_BYTES):
            yield self.read(start, min(start + READ_BYTES, self.size))

    def locate(self, offset: int) -> tuple[str, int]:
        """Returns the file that contains a byte, and the offset of the byte in it."""
        number, offset = self._locate(offset)
        return self.parts[number].name, self.parts[number].skipped + offset

    def _locate(self, offset: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._ends, offset)
        return number, offset - (self._ends[number - 1] if number else 0)

    def place(self, offset: int) -> str:
        """Returns the file, line and column of the character at a byte offset; for JSON Lines, only file and line."""
        number, offset = self._locate(offset)
        part = self.parts[number]
        if part.records is None:
            line, column = _line_and_column(part, offset, 0 if number else self.mark)
            return f"{part.name} line {line}, column {column}"
        for line, text in part.records():
            offset -= len(text)
            if offset < 0:
                return f"{part.name} line {line}"
        raise changed(part.name)


def _line_and_column(part: Part, offset: int, mark: int) -> tuple[int, int]:
    line, column = 1, 1
    for start in range(mark, offset, READ_BYTES):
        content = np.frombuffer(part.bytes(start, min(start + READ_BYTES, offset)), np.uint8)
        breaks = np.flatnonzero(content == ord("\n"))
        if breaks.size:
            line, column, content = line + len(breaks), 1, content[breaks[-1] + 1 :]
        column += int(((content & 0xC0) != 0x80).sum())  # without UTF-8 continuation bytes
    return line, column


def open_text(texts: TextPaths, spool: Spool, *, separator: str | None = None) -> TextSource:
    """Opens one or more files as a single text.

    Args:
        texts: the files, as for `text_files`; empty files are left out.
        spool: stores files that cannot be read at an offset: compressed files, JSON Lines and standard input.
        separator: text inserted between two files or JSON Lines records; None for a line break unless there is one.

    Raises:
        UserError: a file does not exist, is damaged, or is a pipe or device.
        OSError: a file cannot be read.
    """
    between = None if separator is None else to_utf8(separator)
    files, parts = text_files(texts), list[Part]()
    for path in files:
        part = _open(path, between, spool)
        part = part.without_mark() if parts else part
        if parts and part.size:
            last = parts[-1]
            parts.append(in_memory("--separator", gap(last.bytes(last.size - 1, last.size), between)))
        parts += [part] if part.size else []
    return TextSource(name_of(as_list(texts)), parts, files)


def name_of(texts: Sequence[TextPath]) -> str:
    """Returns a name for the text, for use in messages."""
    first = "standard input" if Path(texts[0]) == STANDARD_INPUT else str(texts[0])
    return f"{first} and {len(texts) - 1} more" if texts[1:] else first


def _open(path: Path, separator: bytes | None, spool: Spool) -> Part:
    if path == STANDARD_INPUT:
        return spool.add(name_of([path]), iter(lambda: sys.stdin.buffer.read(READ_BYTES), b""))
    check_is_file(path)
    if is_json_lines(path):
        records = functools.partial(json_lines, path, separator, READ_BYTES)
        return spool.add(str(path), (text for _, text in records()), records)
    if is_compressed(path):
        return spool.add(str(path), contents(path, READ_BYTES))
    return _plain(path)
