"""Reads and writes arrays in safetensors files (https://huggingface.co/docs/safetensors).

A file consists of the header length (8 bytes, little-endian), the header (JSON: the dtype, shape and offsets of each
array by name, and strings under `__metadata__`) and the arrays. charjax adds a SHA-256 digest of the arrays to the
metadata; files written by other tools may not have one.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from charjax.errors import UserError, in_short
from charjax.host.atomic_file import replacing
from charjax.runs.safe_files import LARGEST_JSON, open_file, parse_json

# Maximum size in bytes of the metadata in a header, and of each array's description.
_LARGEST_METADATA, _LARGEST_ENTRY = 1 << 16, 256
_MOST_DIMENSIONS = 32
_FLOATS = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes arrays to a file, replacing it atomically.

    Args:
        path: the file.
        arrays: float32 arrays by name.
        metadata: strings to store with them.

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


def read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays from an untrusted file.

    Args:
        path: the file.
        shapes: expected shape of each array by name, which limits how much is read.

    Returns:
        The float32 arrays by name, and the metadata.

    Raises:
        UserError: the file is not a safetensors file, its arrays are not float32 of these shapes, or it is damaged.
        OSError: the file cannot be read.
    """
    size = 4 * sum(map(math.prod, shapes.values()))
    with open_file(path) as file:
        entries, metadata = _read_header(file, path, _LARGEST_METADATA + _LARGEST_ENTRY * len(shapes))
        offsets = {name: _check_entry(path, name, entries, shapes, size) for name in sorted({*entries, *shapes})}
        found = os.fstat(file.fileno()).st_size - file.tell()
        if found != size:
            raise UserError(f"{path} is damaged: its arrays total {found:,} bytes, not {size:,}")
        data = _read_data(file, path, metadata, size)
    return {name: data[part].view("<f4").reshape(shapes[name]) for name, part in offsets.items()}, metadata


def read_any_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads arbitrary arrays from an untrusted file, using little more memory than the file's size.

    Returns:
        The arrays by name, of any float dtype, and the metadata.

    Raises:
        UserError: the file is not a safetensors file, an array is not floating-point, or the file is damaged.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        entries, metadata = _read_header(file, path, LARGEST_JSON)
        data = _read_data(file, path, metadata, os.fstat(file.fileno()).st_size - file.tell())
    arrays, used = {}, 0
    for name, entry in entries.items():
        dtype, shape, begin, end = _described(path, name, entry, data.size)
        arrays[name] = data[begin:end].view(dtype).reshape(shape)
        used += end - begin
    # If arrays shared bytes, their total size could be many times that of the file.
    if used != data.size:
        raise UserError(f"{path} is damaged: its arrays total {used:,} bytes, not {data.size:,}")
    return arrays, metadata


def _read_header(file: BinaryIO, path: Path, largest: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads the array descriptions, which are not checked yet, and the metadata."""
    length = int.from_bytes(file.read(8), "little")
    if length > largest:
        raise UserError(f"{path} is not a model file: its header would be {length:,} bytes long")
    entries = parse_json(file.read(length), f"the header of {path}")
    metadata = entries.pop("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path} is not a model file: its header does not consist of strings and arrays")
    return entries, metadata


def _read_data(file: BinaryIO, path: Path, metadata: dict[str, str], size: int) -> np.ndarray:
    data = np.fromfile(file, np.uint8, size)
    digest = hashlib.sha256(data.data).hexdigest()
    if data.size != size or metadata.get("sha256", digest) != digest:
        raise UserError(f"{path} is damaged")
    return data


def _described(path: Path, name: str, entry: Any, size: int) -> tuple[np.dtype, list[int], int, int]:
    """Checks an array's description and returns its dtype, its shape and where it begins and ends after the header."""
    match entry:
        case {"dtype": str(kind)} if kind not in _FLOATS:
            what = f"the dtype of {in_short(name)} must be one of {', '.join(_FLOATS)}, not {in_short(kind)}"
            raise UserError(f"{path}: {what}")
        case {"dtype": kind, "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            is_shape = len(shape) <= _MOST_DIMENSIONS and all(isinstance(n, int) and n >= 0 for n in shape)
            dtype = _FLOATS[kind]
            if is_shape and 0 <= begin <= end <= size and end - begin == dtype.itemsize * math.prod(shape):
                return dtype, shape, begin, end
    raise UserError(f"{path} is damaged: {in_short(name)} is described as {in_short(entry)}")


def _check_entry(path: Path, name: str, entries: Any, shapes: Mapping[str, tuple[int, ...]], size: int) -> slice:
    """Checks an array's description and returns the slice of its bytes after the header."""
    entry = entries.get(name)
    found = f"{entry.get('dtype')}{entry.get('shape')}" if isinstance(entry, dict) else "missing"
    expected = f"F32{list(shapes[name])}" if name in shapes else "missing"
    if found != expected:
        what = f"{in_short(name)} is {in_short(found)}, not {in_short(expected)}".replace("'", "")
        raise UserError(f"{path} does not match its configuration: {what}")
    match entry.get("data_offsets"):
        case [int(begin), int(end)] if 0 <= begin <= end <= size and begin % 4 == 0:
            if end - begin == 4 * math.prod(shapes[name]):
                return slice(begin, end)
    raise UserError(f"{path} is damaged: the offsets of {name} are {in_short(entry.get('data_offsets'))}")
