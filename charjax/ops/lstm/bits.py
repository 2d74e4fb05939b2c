"""bfloat16 numbers as their bits in uint16, which XLA's code for processors handles in whole vectors.

Arrays of bfloat16 outside of products it converts element by element, and loops that write them slower than float32:
kept as uint16 they take half the memory and half the time. On other devices the bits cost nothing.
"""

import jax
import jax.numpy as jnp

from charjax.types import Array


def pack(x: Array, dtype: jnp.dtype) -> Array:
    """Float32 -> what to keep of it: uint16 bits, rounded to the nearest even, for bfloat16; else x itself.

    A NaN stays one, unless all bits that make it one are among those rounded off, which no arithmetic produces.
    """
    if dtype != jnp.bfloat16:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    to_even = jnp.uint32(0x7FFF) + ((bits >> 16) & jnp.uint32(1))
    return ((bits + to_even) >> 16).astype(jnp.uint16)


def unpack(kept: Array) -> Array:
    """What `pack` made -> float32."""
    if kept.dtype != jnp.uint16:
        return kept
    return jax.lax.bitcast_convert_type(kept.astype(jnp.uint32) << 16, jnp.float32)


def operand(kept: Array) -> Array:
    """What `pack` made -> the operand of a product, in the dtype it was packed for."""
    return jax.lax.bitcast_convert_type(kept, jnp.bfloat16) if kept.dtype == jnp.uint16 else kept


def kept(x: Array) -> Array:
    """The reverse of `operand`."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x
