"""Varying manual axes: under `jax.shard_map`, an array either varies over a mesh axis or is constant along it."""

from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from charjax.array_types import Array

Tree = TypeVar("Tree")


def alike(tree: Tree, axes: frozenset[str] = frozenset()) -> Tree:
    """Makes all arrays vary over the same mesh axes, namely those that any of them varies over, plus `axes`.

    Loops and custom calls require this.
    """
    leaves, structure = jax.tree.flatten(tree)
    wanted = axes.union(*map(varying_axes, leaves))
    return jax.tree.unflatten(structure, [_vary(leaf, wanted - varying_axes(leaf)) for leaf in leaves])


def varying_axes(array: Array) -> frozenset[str]:
    """Returns the mesh axes that an array varies over; none outside `jax.shard_map`."""
    return jax.typeof(array).manual_axis_type.varying


def empty(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: Array) -> Array:
    """Returns an uninitialized array, to be fully overwritten, that varies over the same axes as `like`.

    `lax.scan` initializes its stacked outputs to zero, which, by the compiler's estimate, took a seventh of a training
    step on a TPU.
    """
    return _vary(jax.lax.empty(shape, dtype), varying_axes(like))


def result(like: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
    """Returns the type of a custom-call result that varies over the same mesh axes as the operand `like`."""
    axes = jax.typeof(like).manual_axis_type
    # A type that varies over the axes of a shard_map must also name its mesh.
    placed = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec()) if axes.varying else None
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed, manual_axis_type=axes)


def _vary(array: Array, axes: frozenset[str]) -> Array:
    return jax.lax.pcast(array, tuple(axes), to="varying") if axes else array
