"""Arrays under `jax.shard_map`, where each is known to vary over the devices or to be the same on all of them."""

from typing import TypeVar

import jax

from charjax.types import Array

Tree = TypeVar("Tree")


def alike(tree: Tree) -> Tree:
    """Makes all arrays vary over the devices if one does, as loops and custom calls want it."""
    leaves, structure = jax.tree.flatten(tree)
    varying = [jax.typeof(leaf).manual_axis_type.varying for leaf in leaves]
    wanted = frozenset().union(*varying)
    return jax.tree.unflatten(
        structure,
        [
            jax.lax.pcast(leaf, tuple(wanted - axes), to="varying") if wanted - axes else leaf
            for leaf, axes in zip(leaves, varying, strict=True)
        ],
    )


def empty(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, like: Array) -> Array:
    """An array to be written to as a whole, with nothing in it yet; it varies over the devices as `like` does.

    What `lax.scan` collects starts as zeros, and writing those took a seventh of a training step on a TPU (by the
    compiler's figures).
    """
    axes = jax.typeof(like).manual_axis_type.varying
    buffer = jax.lax.empty(shape, dtype)
    return jax.lax.pcast(buffer, tuple(axes), to="varying") if axes else buffer
