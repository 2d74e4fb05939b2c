"""The matrix products of an LSTM layer: operands in the model's dtype, sums in float32."""

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMWeights


def product(x: Array, w: Array, dtype: jnp.dtype) -> Array:
    """X [..., K] times w [K, N] -> [..., N] float32, with the operands rounded to `dtype` first."""
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def input_product(x: Array, w_ih: Array, dtype: jnp.dtype) -> Array:
    """X [..., D] times w_ih [D, G] -> [..., G] float32; integer x [...] picks rows, as one-hot inputs would."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.take(w_ih.astype(dtype), x, axis=0).astype(jnp.float32)
    return product(x, w_ih, dtype)


def matmul(x: Array, w: Array) -> Array:
    """[..., K] times [..., K, N] in whatever dtype they have -> float32."""
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def rows_of(x: Array) -> Array:
    """[T, B, D] -> [T * B, D]."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


def input_gates(weights: LSTMWeights, x: Array, dtype: jnp.dtype) -> Array:
    """The inputs' part of the gates, with the bias: x [T, B, D] or [T, B] integer -> [T, B, 4H] in `dtype`."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return look_up(gate_table(weights, dtype), x)
    return (matmul(x, weights.w_ih.astype(dtype)) + weights.bias[None, None]).astype(dtype)


def gate_table(weights: LSTMWeights, dtype: jnp.dtype) -> Array:
    """[D + 1, 4H] in `dtype`: what each integer input adds to the gates, with the bias, and a row of NaN."""
    table = (weights.w_ih.astype(dtype).astype(jnp.float32) + weights.bias[None]).astype(dtype)
    return jnp.concatenate([table, jnp.full_like(table[:1], jnp.nan)])


def look_up(table: Array, x: Array) -> Array:
    """Rows of a `gate_table`: x [...] integer -> [..., 4H]; an integer out of range finds the row of NaN.

    That costs a comparison of integers. What `jnp.take` does, choosing between NaN and the row found, goes over all of
    the result once more.
    """
    last = table.shape[0] - 1
    row = x.astype(jnp.int32)
    return table.at[jnp.where((row < 0) | (row > last), last, row)].get(mode="promise_in_bounds")


def activate(z: Array) -> tuple[Array, Array, Array, Array]:
    """Gates before their activations [..., 4H] -> i, f, g, o, [..., H] each."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def cell(z: Array, c: Array) -> tuple[Array, Array]:
    """One step: gates before their activations [..., 4H] and the c before [..., H] -> c and h after, [..., H]."""
    i, f, g, o = activate(z)
    c = f * c + i * g
    return c, o * jnp.tanh(c)
