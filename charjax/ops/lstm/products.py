"""The matrix products of an LSTM layer: operands in the model's dtype, sums in float32."""

import jax.numpy as jnp

from charjax.types import Array


def product(x: Array, w: Array, dtype: jnp.dtype) -> Array:
    """X [..., K] times w [K, N] -> [..., N] float32, with the operands rounded to `dtype` first."""
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def input_product(x: Array, w_ih: Array, dtype: jnp.dtype) -> Array:
    """X [..., D] times w_ih [D, G] -> [..., G] float32; integer x [...] picks rows, as one-hot inputs would."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.take(w_ih.astype(dtype), x, axis=0).astype(jnp.float32)
    return product(x, w_ih, dtype)
