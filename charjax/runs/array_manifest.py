"""What arrays a part of a checkpoint holds, read before TensorStore reads anything.

Arrays are stored as zarr, each in a folder of its own: zarr.json says what it is, and its chunks lie beside it as they
are in memory. OCDBT, which Orbax would put them in, packs its index by zstd: there 90 kB can demand gigabytes. What
charjax does not write so is refused.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from charjax.errors import UserError, in_short
from charjax.runs.safe_files import read_json

METADATA = "_METADATA"
_ARRAY_TYPES = ("jax.Array", "np.ndarray")
# Codecs that give back as much as a chunk has; blosc, gzip and what is yet to come are not among them.
_CODECS = ("bytes", "crc32c", "sharding_indexed")


class StoredArray(NamedTuple):
    """An array on disk.

    Attributes:
        shape: its shape.
        dtype: name of its dtype.
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """As float32[12, 128]."""
        return f"{self.dtype}{list(self.shape)}"


def read_stored_arrays(folder: Path) -> dict[str, StoredArray]:
    """Reads what arrays a part of a checkpoint holds.

    Args:
        folder: the part's folder.

    Returns:
        Each array by its place in the tree, as layer_0/cell/bias.

    Raises:
        UserError: they are stored in another way than charjax stores them.
        OSError: a file cannot be read.
    """
    for path in (folder / "array_metadatas").glob("*"):
        read_json(path)  # which Orbax will read at once, of any size
    metadata = _fields(read_json(folder / METADATA), folder, METADATA)
    if metadata.get("use_ocdbt") is not False or metadata.get("use_zarr3") is not True:
        raise UserError(f"{folder} is not stored as charjax stores arrays")
    arrays = {}
    for tree_key, entry in _fields(metadata.get("tree_metadata"), folder, METADATA).items():
        place, is_array = _place(folder, tree_key, entry)
        if is_array:
            arrays["/".join(place)] = _read_array(folder / ".".join(place) / "zarr.json")
    return arrays


def _place(folder: Path, tree_key: str, entry: Any) -> tuple[tuple[str, ...], bool]:
    """A leaf's place in the tree, and whether it is an array; other leaves are None."""
    entry = _fields(entry, folder, METADATA)
    keys = entry.get("key_metadata")
    kind = _fields(entry.get("value_metadata"), folder, METADATA).get("value_type")
    names = [str(key.get("key")) for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    # They become names of files.
    are_plain = names and all(re.fullmatch(r"[A-Za-z0-9_]+", name) for name in names)
    if not (are_plain and str(tuple(names)) == tree_key and kind in (*_ARRAY_TYPES, "None")):
        raise UserError(f"{folder / METADATA} names {in_short(tree_key)}, which charjax does not store")
    return tuple(names), kind in _ARRAY_TYPES


def _read_array(path: Path) -> StoredArray:
    values = _fields(read_json(path), path.parent, path.name)
    shape, dtype = values.get("shape"), values.get("data_type")
    grid = _fields(values.get("chunk_grid"), path.parent, path.name)
    chunk = _fields(grid.get("configuration"), path.parent, path.name).get("chunk_shape")
    if not (_are_sizes(shape) and _are_sizes(chunk) and len(shape) == len(chunk) and isinstance(dtype, str)):
        raise UserError(f"{path} is not of an array that charjax stores")
    # A chunk is read whole.
    fits = all(part <= max(whole, 1) for part, whole in zip(chunk, shape, strict=True))
    if not (fits and grid.get("name") == "regular" and _are_harmless(values.get("codecs"), chunk)):
        raise UserError(f"{path} is not of an array that charjax stores")
    return StoredArray(tuple(shape), dtype[:20])


def _are_sizes(sizes: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(sizes, list)
        and all(type(size) is int and size >= 0 for size in sizes)
        and math.prod(sizes) < np.iinfo(np.int64).max
    )


def _are_harmless(codecs: Any, chunk: list[int], *, inside: bool = False) -> bool:
    """Whether all codecs are known, and shards hold a single chunk: an index of many takes more than they do."""
    if not isinstance(codecs, list) or not all(isinstance(codec, dict) for codec in codecs):
        return False
    for codec in codecs:
        if codec.get("name") not in _CODECS or (inside and codec["name"] == "sharding_indexed"):
            return False
        if codec["name"] == "sharding_indexed":
            shard = codec.get("configuration")
            if not isinstance(shard, dict) or shard.get("chunk_shape") != chunk:
                return False
            if not all(_are_harmless(shard.get(name), chunk, inside=True) for name in ("codecs", "index_codecs")):
                return False
    return True


def _fields(values: Any, folder: Path, name: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{folder / name} does not hold what charjax writes there")
    return values
