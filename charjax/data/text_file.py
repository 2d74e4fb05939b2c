"""Reads ids from a text file on demand, a slice at a time, for texts that do not fit in memory.

Files are read, not mapped: a mapped file that shrinks kills the process that accesses it, while a read reports it.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from charjax.data.vocab import Vocab
from charjax.errors import UserError

# Characters between two entries of a file's index; up to that many are decoded to find one.
INDEX_STRIDE = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class TextFile:
    """A text file that has been surveyed and can be read in any order.

    Attributes:
        path: the file.
        vocab: its characters.
        characters: number of characters.
        first_byte: offset of the first character, after any byte order mark.
        index: byte offset of every `INDEX_STRIDE`th character; None if every character is one byte.
        size: size of the file in bytes.
        modified: time of its last change, in nanoseconds.
    """

    path: Path
    vocab: Vocab
    characters: int
    first_byte: int
    index: list[int] | None
    size: int
    modified: int

    def to_dict(self) -> dict[str, Any]:
        """Returns, ready for JSON, what `from_dict` needs to read the same text in another process."""
        values = dataclasses.asdict(self)
        del values["path"], values["modified"]  # of this process's copy
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: Path) -> "TextFile":
        """Opens a text that another process has surveyed; this machine may have its own copy.

        Raises:
            UserError: the file has a different size here.
        """
        found = path.stat()
        if found.st_size != values["size"]:
            raise UserError(
                f"{path} has {found.st_size:,} bytes here but {values['size']:,} in process 0; "
                "give every process the same text"
            )
        vocab = Vocab.from_dict(values["vocab"])
        return cls(**{**values, "path": path, "vocab": vocab, "modified": found.st_mtime_ns})

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads characters [start, stop), 0 <= start <= stop <= characters -> ids [stop - start].

        Raises:
            UserError: the file has changed since it was surveyed.
            OSError: the file can no longer be read.
        """
        if start == stop:
            return np.empty(0, self.vocab.dtype)
        if self.index is None:
            content = self._bytes(self.first_byte + start, self.first_byte + stop)
            points = np.frombuffer(content, np.uint8)
        else:
            first, last = start // INDEX_STRIDE, -(-stop // INDEX_STRIDE)
            end = self.index[last] if last < len(self.index) else self.size
            points = self._decoded(self._bytes(self.index[first], end))
            points = points[start - first * INDEX_STRIDE :][: stop - start]
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
        """Id of each code point, -1 if it has none."""
        codes = self.vocab.codes()
        table = np.full(int(codes[-1]) + 1, -1, np.int32)
        table[codes] = np.arange(self.vocab.size)
        return table

    def _bytes(self, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            file.seek(start)
            content = file.read(stop - start)
        if (found.st_size, found.st_mtime_ns) != (self.size, self.modified) or len(content) < stop - start:
            raise self._changed()
        return content

    def _decoded(self, content: bytes) -> np.ndarray:
        try:
            return np.frombuffer(content.decode("utf-8").encode("utf-32-le"), np.uint32)
        except UnicodeDecodeError:
            raise self._changed() from None

    def _changed(self) -> UserError:
        return UserError(f"{self.path} changed while it was in use; make a copy and use that")


@dataclasses.dataclass(frozen=True, eq=False)
class FileIds:
    """Ids [stop - start] of part of a text file, which can be sliced like an array and are read on demand.

    Attributes:
        file: the whole text.
        start: the first character of the part.
        stop: one past its last character.
    """

    file: TextFile
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that fits every id."""
        return np.dtype(self.file.vocab.dtype)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Reads a slice of consecutive ids; errors as for `TextFile.read`."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"ids in a file can only be sliced with step 1, not {step}")
        return self.file.read(self.start + start, self.start + max(start, stop))

    def part(self, start: int, stop: int) -> "FileIds":
        """Returns characters [start, stop) of this part, unread."""
        return FileIds(self.file, self.start + start, self.start + stop)
