"""A text that stays in its file: ids that are read, a slice at a time, when they are asked for.

Files are read, not mapped: a mapped file that grows shorter kills the process that looks at it, where a read says so.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from charjax.data.vocab import Vocab
from charjax.errors import UserError

# Characters between two places in the file that are known by their byte: as many are decoded to find one between them.
MARK = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class TextFile:
    """What is known of a text file from a first reading: enough to read any part of it.

    Attributes:
        path: the file.
        vocab: its characters.
        characters: number of them.
        first_byte: where they begin, after a byte order mark.
        marks: byte offset of every `MARK`th character, int64; None where each is one byte.
        size: bytes of the file.
        modified: time of its last change, in nanoseconds.
    """

    path: Path
    vocab: Vocab
    characters: int
    first_byte: int
    marks: np.ndarray | None
    size: int
    modified: int

    def to_dict(self) -> dict[str, Any]:
        """What another process needs to read the same text, as JSON can hold it; see `from_dict`."""
        return {
            "vocab": self.vocab.to_dict(),
            "characters": self.characters,
            "first_byte": self.first_byte,
            "marks": None if self.marks is None else self.marks.tolist(),
            "size": self.size,
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any], path: Path) -> "TextFile":
        """The text at a path, perhaps another machine's copy of it, by what a process told that has read it.

        Raises:
            UserError: the file has another size.
        """
        found = path.stat()
        if found.st_size != told["size"]:
            raise UserError(f"{path} has {found.st_size:,} bytes here, {told['size']:,} where it was read first")
        return cls(
            path=path,
            vocab=Vocab.from_dict(told["vocab"]),
            characters=told["characters"],
            first_byte=told["first_byte"],
            marks=None if told["marks"] is None else np.array(told["marks"], np.int64),
            size=found.st_size,
            modified=found.st_mtime_ns,
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads characters start to stop, 0 <= start <= stop <= characters: ids [stop - start].

        Raises:
            UserError: the file has changed since it was first read.
            OSError: it cannot be read any more.
        """
        if start == stop:
            return np.empty(0, self.vocab.dtype)
        if self.marks is None:
            content = self._bytes(self.first_byte + start, self.first_byte + stop)
            points = np.frombuffer(content, np.uint8)
        else:
            first, last = start // MARK, -(-stop // MARK)
            end = int(self.marks[last]) if last < len(self.marks) else self.size
            points = self._decoded(self._bytes(int(self.marks[first]), end))[start - first * MARK :][: stop - start]
        if self.vocab.kind == "bytes":
            return points
        if len(points) != stop - start or points.max() >= len(self._table):
            raise self._changed()
        ids = self._table[points]
        if ids.min() < 0:
            raise self._changed()
        return ids.astype(self.vocab.dtype)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The id of each code point, -1 where it has none."""
        codes = self.vocab.codes()
        table = np.full(int(codes[-1]) + 1, -1, np.int32)
        table[codes] = np.arange(self.vocab.size)
        return table

    def _bytes(self, start: int, stop: int) -> bytes:
        with self.path.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != (self.size, self.modified):
                raise self._changed()
            file.seek(start)
            parts = []
            left = stop - start
            while left and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
        if left:
            raise self._changed()
        return b"".join(parts)

    def _decoded(self, content: bytes) -> np.ndarray:
        try:
            return np.frombuffer(content.decode("utf-8").encode("utf-32-le"), np.uint32)
        except UnicodeDecodeError:
            raise self._changed() from None

    def _changed(self) -> UserError:
        return UserError(f"{self.path} changed while it was in use; give a copy of it")


@dataclasses.dataclass(frozen=True, eq=False)
class FileIds:
    """Part of a text file, which behaves as an array of ids [stop - start] where slices are taken of it.

    Attributes:
        file: the whole text.
        start: the first character of the part.
        stop: the character after its last.
    """

    file: TextFile
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype:
        """uint8, or uint16 for vocabularies of more than 256 characters."""
        return np.dtype(self.file.vocab.dtype)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Reads a slice of consecutive ids; errors as `TextFile.read`."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"ids in a file are read one after the other, not by steps of {step}")
        return self.file.read(self.start + start, self.start + max(start, stop))

    def part(self, start: int, stop: int) -> "FileIds":
        """Characters start to stop of this part, unread."""
        return FileIds(self.file, self.start + start, self.start + stop)
