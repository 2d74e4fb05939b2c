"""Arrays under `jax.shard_map`, where each is known to vary over the devices or to be the same on all of them."""

from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from charjax.array_types import Array

Tree = TypeVar("Tree")


def alike(tree: Tree, axes: frozenset[str] = frozenset()) -> Tree:
    """Makes all arrays vary over the mesh axes that one of them, or `axes`, does, as loops and custom calls want it."""
    leaves, structure = jax.tree.flatten(tree)
    wanted = axes.union(*map(varying_axes, leaves))
    return jax.tree.unflatten(structure, [_vary(leaf, wanted - varying_axes(leaf)) for leaf in leaves])


def varying_axes(array: Array) -> frozenset[str]:
    """The mesh axes that an array varies over; none outside of `jax.shard_map`."""
    return jax.typeof(array).manual_axis_type.varying


def empty(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: Array) -> Array:
    """An array to be written to as a whole, with nothing in it yet; it varies over the devices as `like` does.

    What `lax.scan` collects starts as zeros, and writing those took a seventh of a training step on a TPU (by the
    compiler's figures).
    """
    return _vary(jax.lax.empty(shape, dtype), varying_axes(like))


def result(like: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
    """The type of a custom call's result that varies over the same devices as an operand."""
    axes = jax.typeof(like).manual_axis_type
    # What varies over the devices of a shard_map has to name its mesh as well.
    placed = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec()) if axes.varying else None
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed, manual_axis_type=axes)


def _vary(array: Array, axes: frozenset[str]) -> Array:
    return jax.lax.pcast(array, tuple(axes), to="varying") if axes else array
