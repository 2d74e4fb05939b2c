"""Checksums of arrays, computed where the arrays are."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from charjax.types import Array


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit checksum of each array of a tree, by its path in the tree.

    It is the sum, modulo 2^32, of every element's bits times an odd number that depends on the element's place.
    So any changed bit changes it; and as whole numbers add up the same in any order, it does not depend on
    devices and shardings.

    Args:
        tree: a tree of arrays of numbers of at most 32 bits, booleans or PRNG keys.
    """
    sums = jax.device_get(_checksums(tree))
    return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _checksums(tree: Any) -> Any:
    return jax.tree.map(_checksum, tree)


def _checksum(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    bits = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    # Each place's number is put together per dimension: flattening a sharded array would gather it.
    place = jnp.zeros(bits.shape, jnp.uint32)
    for dimension in range(bits.ndim):
        stride = math.prod(bits.shape[dimension + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) * jnp.uint32(stride)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
