"""Arithmetic shared by the implementations: matmuls that accumulate in float32, and the gates of a step."""

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMWeights


def matmul(x: Array, w: Array) -> Array:
    """Multiplies [..., K] by [..., K, N], both of any dtype, accumulating in float32 -> float32."""
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def matmul_in(x: Array, w: Array, dtype: jnp.dtype) -> Array:
    """Rounds x [..., K] and w [K, N] to `dtype` and multiplies them -> [..., N] float32."""
    return matmul(x.astype(dtype), w.astype(dtype))


def input_product(x: Array, w_ih: Array, dtype: jnp.dtype) -> Array:
    """Multiplies x [..., D] by w_ih [D, G] -> [..., G] float32; integer x [...] selects rows, as if one-hot encoded."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.take(w_ih.astype(dtype), x, axis=0).astype(jnp.float32)
    return matmul_in(x, w_ih, dtype)


def rows_of(x: Array) -> Array:
    """Reshapes [T, B, D] -> [T * B, D]."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


def input_gates(weights: LSTMWeights, x: Array, dtype: jnp.dtype) -> Array:
    """Computes the input term of the gates, plus bias: x [T, B, D] or [T, B] integer -> [T, B, 4H] in `dtype`."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return look_up(gate_table(weights, dtype), x)
    return (matmul(x, weights.w_ih.astype(dtype)) + weights.bias[None, None]).astype(dtype)


def gate_table(weights: LSTMWeights, dtype: jnp.dtype) -> Array:
    """Returns [D + 1, 4H] in `dtype`: the gates' input term for each integer, plus bias; then a NaN row."""
    table = (weights.w_ih.astype(dtype).astype(jnp.float32) + weights.bias[None]).astype(dtype)
    return jnp.concatenate([table, jnp.full_like(table[:1], jnp.nan)])


def look_up(table: Array, x: Array) -> Array:
    """Looks up rows of a `gate_table`: x [...] integer -> [..., 4H]; out-of-range integers select the NaN row.

    Only the integers are compared. `jnp.take` would replace rows with NaN in another pass over the whole result.
    """
    last = table.shape[0] - 1
    row = x.astype(jnp.int32)
    return table.at[jnp.where((row < 0) | (row > last), last, row)].get(mode="promise_in_bounds")


def activate(z: Array) -> tuple[Array, Array, Array, Array]:
    """Applies the activations: z [..., 4H] -> i, f, g, o, [..., H] each."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def cell(z: Array, c: Array) -> tuple[Array, Array]:
    """Takes one step: pre-activation gates z [..., 4H] and c [..., H] -> the new c and h."""
    i, f, g, o = activate(z)
    c = f * c + i * g
    return c, o * jnp.tanh(c)
