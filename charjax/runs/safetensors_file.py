"""Reads and writes float32 arrays as a safetensors file (https://huggingface.co/docs/safetensors).

The file is the length of its header (8 bytes, little endian), the header (JSON: dtype, shape and offsets of each array
by name, strings under `__metadata__`) and the arrays. charjax adds a SHA-256 of the arrays to the metadata; files of
others may lack it.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from charjax.errors import UserError, in_short
from charjax.host.atomic_file import replacing
from charjax.runs.safe_files import open_file, parse_json

# Most bytes that a header may take: its metadata, and the description of each array.
_LARGEST_METADATA, _LARGEST_ENTRY = 1 << 16, 256

Shapes = Mapping[str, tuple[int, ...]]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Replaces a file by arrays, all at once.

    Args:
        path: the file.
        arrays: float32 arrays by name.
        metadata: what to store with them.

    Raises:
        OSError: the file cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(arrays[name], "<f4") for name in sorted(arrays)}
    digest, entries, end = hashlib.sha256(), {}, 0
    for name, array in contiguous.items():
        digest.update(array.data)
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    header = json.dumps({"__metadata__": {**metadata, "sha256": digest.hexdigest()}, **entries}).encode()
    header += b" " * (-len(header) % 8)  # so that the arrays are aligned
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for array in contiguous.values():
            file.write(array.data)


def read_arrays(path: Path, shapes: Shapes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays of a file that may come from anyone.

    Args:
        path: the file.
        shapes: the shape of each array that it must have by name; they bound what is read.

    Returns:
        The arrays, float32, by name, and the metadata.

    Raises:
        UserError: the file is not a safetensors file, has other arrays, or is damaged.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        header = _read_header(file, path, shapes)
        data = np.empty(header.size, np.uint8)
        read = file.readinto(data.data)
    digest = hashlib.sha256(data.data).hexdigest()
    if read != header.size or header.metadata.get("sha256", digest) != digest:
        raise UserError(f"{path} is damaged")
    arrays = {
        name: data[begin : begin + 4 * math.prod(shapes[name])].view("<f4").reshape(shapes[name])
        for name, begin in header.offsets.items()
    }
    return arrays, header.metadata


def read_metadata(path: Path, shapes: Shapes) -> dict[str, str]:
    """Reads only the metadata of a file; arguments and errors as `read_arrays` has them."""
    with open_file(path) as file:
        return _read_header(file, path, shapes).metadata


class _Header(NamedTuple):
    """What precedes the arrays.

    Attributes:
        offsets: first byte of each array by name, counted from the end of the header.
        metadata: strings.
        size: bytes of all arrays.
    """

    offsets: dict[str, int]
    metadata: dict[str, str]
    size: int


def _read_header(file: BinaryIO, path: Path, shapes: Shapes) -> _Header:
    length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_METADATA + _LARGEST_ENTRY * len(shapes):
        raise UserError(f"{path} is not a model file: its header takes {length:,} bytes")
    entries = parse_json(file.read(length), f"the header of {path}")
    metadata = entries.pop("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path} is not a model file: its header is not of strings and arrays")
    size = 4 * sum(map(math.prod, shapes.values()))
    offsets = {
        name: _offset(path, name, entries.get(name), shapes.get(name), size) for name in sorted({*entries, *shapes})
    }
    found = os.fstat(file.fileno()).st_size - 8 - length
    if found != size:
        raise UserError(f"{path} is damaged: its arrays take {found:,} bytes, not {size:,}")
    return _Header(offsets, metadata, size)


def _offset(path: Path, name: str, entry: Any, shape: tuple[int, ...] | None, size: int) -> int:
    """Checks the description of an array, and returns its first byte."""
    entry = entry if isinstance(entry, dict) else {}
    found, expected = _describe(entry.get("dtype"), entry.get("shape")), _describe("F32" if shape else None, shape)
    if found != expected:
        raise UserError(f"{path} does not match its configuration: {in_short(name)} is {found}, not {expected}")
    match entry.get("data_offsets"):
        case [int(begin), int(end)] if 0 <= begin <= end <= size and begin % 4 == 0:
            if end - begin == 4 * math.prod(shape or ()):
                return begin
    raise UserError(f"{path} is damaged: {name} is at {in_short(entry.get('data_offsets'))}")


def _describe(dtype: Any, shape: Any) -> str:
    if dtype is None:
        return "missing"
    shape = list(shape) if isinstance(shape, tuple) else shape
    return in_short(f"{dtype}{shape}").strip("'")
