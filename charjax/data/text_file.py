"""Reads ids from text on demand, a slice at a time, for text that does not fit in memory."""

import dataclasses
import functools
from typing import Any

import numpy as np

from charjax.data.text_source import TextSource, changed
from charjax.data.vocab import Vocab
from charjax.errors import UserError

# Number of characters between index entries; up to that many are decoded to find a character.
INDEX_STRIDE = 1 << 16
# Entries in a table of ids for a character that is skipped, and for one that was not in the text when surveyed.
SKIPPED, _NEW = -2, -1


@dataclasses.dataclass(frozen=True, eq=False)
class TextFile:
    """Text that has been surveyed and can be read in any order.

    Attributes:
        source: the text's bytes.
        vocab: the vocabulary.
        characters: number of characters.
        first_byte: offset of the first character, after any byte order mark.
        index: byte offset of every `INDEX_STRIDE`th character; None if all characters are single bytes.
        size: number of bytes.
        sha256: hex digest of the bytes.
        unknown: maps each code point not in the vocabulary to the id that replaces it, or `SKIPPED`.
    """

    source: TextSource
    vocab: Vocab
    characters: int
    first_byte: int
    index: list[int] | None
    size: int
    sha256: str
    unknown: dict[int, int] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict from which `from_dict` can read the same text in another process."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["source"], values["unknown"]  # specific to this process; always empty in training
        return {**values, "vocab": self.vocab.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: TextSource) -> "TextFile":
        """Opens text that another process has surveyed; this machine may have its own copy.

        Raises:
            UserError: the text has a different size here.
        """
        if source.size != values["size"]:
            raise UserError(
                f"{source.name} has {source.size:,} bytes here but {values['size']:,} in process 0; "
                "use the same text in all processes"
            )
        return cls(**{**values, "source": source, "vocab": Vocab.from_dict(values["vocab"])})

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads characters [start, stop), with 0 <= start <= stop <= characters, as ids [stop - start].

        Raises:
            UserError: a file has changed since it was surveyed.
            OSError: a file can no longer be read.
        """
        if start == stop:
            return np.empty(0, self.vocab.dtype)
        if self.index is None:
            return self._of_bytes(self.source.read(self.first_byte + start, self.first_byte + stop))
        first, last = start // INDEX_STRIDE, -(-stop // INDEX_STRIDE)
        end = self.index[last] if last < len(self.index) else self.size
        points = self._decoded(self.source.read(self.index[first], end))
        if points.max() >= len(self._table):
            raise changed(self.source.name)
        ids = self._table[points]
        if self.unknown:
            ids = ids[ids != SKIPPED]
        ids = ids[start - first * INDEX_STRIDE :][: stop - start]
        if len(ids) != stop - start or ids.min() < 0:
            raise changed(self.source.name)
        return ids.astype(self.vocab.dtype)

    def _of_bytes(self, content: bytes) -> np.ndarray:
        """Returns the ids of single-byte characters."""
        if self.vocab.kind == "bytes":
            return np.frombuffer(content, np.uint8)
        if not content.isascii():
            raise changed(self.source.name)
        if self.vocab.kind == "ascii":
            return np.frombuffer(content, np.uint8)
        # ASCII comes first in the order of code points, so the ids fit in bytes, too.
        ids = np.frombuffer(content.translate(self._table[:256].astype(np.uint8).tobytes()), np.uint8)
        if ids.max() == 255:  # _NEW
            raise changed(self.source.name)
        return ids.astype(self.vocab.dtype, copy=False)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The id of each code point; negative if it has no id."""
        codes = self.vocab.codes()
        table = np.full(max(int(codes[-1]), 255, *self.unknown) + 1, _NEW, np.int32)
        table[codes] = np.arange(self.vocab.size)
        for code, number in self.unknown.items():
            table[code] = number
        return table

    def _decoded(self, content: bytes) -> np.ndarray:
        try:
            text = content.decode("utf-8", "surrogateescape" if self.unknown else "strict")
            return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        except UnicodeDecodeError:
            raise changed(self.source.name) from None


@dataclasses.dataclass(frozen=True, eq=False)
class FileIds:
    """Ids [stop - start] of part of a file, which can be sliced like an array and are read on demand.

    Attributes:
        file: the full text.
        start: first character of the part.
        stop: one past the last character of the part.
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
        """Reads a slice of consecutive ids; raises the same errors as `TextFile.read`."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"ids in a file can only be sliced with step 1, not {step}")
        return self.file.read(self.start + start, self.start + max(start, stop))

    def part(self, start: int, stop: int) -> "FileIds":
        """Returns characters [start, stop) of this part without reading them."""
        return FileIds(self.file, self.start + start, self.start + stop)
