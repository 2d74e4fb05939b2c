"""What kernels and custom calls have to say under shard_map, where a type tells over which devices an array varies."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from charjax.types import Array


def alike(arrays: Sequence[Array]) -> list[Array]:
    """Makes all arrays vary over the devices if one does, as a custom call wants it."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    wanted = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(wanted - axes), to="varying") if wanted - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    ]


def result(like: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of a result that varies over the same devices as an operand."""
    axes = jax.typeof(like).manual_axis_type
    # What varies over the devices of a shard_map has to name its mesh as well.
    placed = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec()) if axes.varying else None
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed, manual_axis_type=axes)
