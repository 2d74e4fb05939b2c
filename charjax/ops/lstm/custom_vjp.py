"""The fast portable implementation: a hand-written backward pass, optimized for CPUs.

When JAX differentiates `lax.scan`, it carries the weight gradients through the reverse loop and saves twice as much as
needed. Here, the reverse loop computes only dz, and all weight gradients are matmuls after the loop. Each step saves
the activated gates, c and h. docs/performance.md explains this design and what else was tried.

bfloat16 arrays are stored as uint16 bits, because outside matmuls, XLA's CPU code vectorizes operations on uint16 but
converts bfloat16 element by element. On other devices, storing the bits costs nothing.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import matmul, rows_of


class _Saved(NamedTuple):
    """The residuals: the inputs, plus y [T, B, H], c [T, B, H] and the gates [T, B, 4H], all stored with `_store`."""

    weights: LSTMWeights
    x: Array
    carry: LSTMCarry
    y: Array
    c: Array
    gates: Array


def lstm_custom_vjp(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` with a hand-written backward pass."""
    y_TBH, carry = _layer(weights, jnp.swapaxes(x, 0, 1), carry, dtype.name)
    return jnp.swapaxes(y_TBH, 0, 1), carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: str) -> tuple[Array, LSTMCarry]:
    return _forward(weights, x, carry, dtype)[0]


def _forward(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: str) -> tuple[tuple[Array, LSTMCarry], _Saved]:
    """Takes x [T, B, D] float or [T, B] integer."""
    store = functools.partial(_store, dtype=jnp.dtype(dtype))
    hidden = carry.c.shape[-1]
    w_hh = _operand(store(weights.w_hh))
    if jnp.issubdtype(x.dtype, jnp.integer):
        # The bias is added to the table, because the table is smaller than the result of the lookup.
        table = _load(store(weights.w_ih)) + weights.bias[None]
        z_TBG, bias = jnp.take(table, x, axis=0), None
    else:
        x = x if x.dtype == dtype else _operand(store(x.astype(jnp.float32)))
        z_TBG = _product(rows_of(_bits(x)), store(weights.w_ih)).reshape(*x.shape[:2], 4 * hidden)
        bias = weights.bias
    # With sigmoid(z) = (1 + tanh(z / 2)) / 2, one loop over all gates computes the activations, with a constant per
    # gate. XLA vectorizes this loop, whereas concatenating four activations would branch at every element.
    half = jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], jnp.float32), hidden, total_repeat_length=4 * hidden)[None]

    def step(carry: LSTMCarry, z_BG: Array) -> tuple[LSTMCarry, tuple[Array, Array, Array]]:
        z_BG = z_BG + matmul(_operand(store(carry.h)), w_hh)
        if bias is not None:
            z_BG = z_BG + bias[None]
        gates_BG = half * jnp.tanh(half * z_BG) + (1 - half)
        i_BH, f_BH, g_BH, o_BH = jnp.split(gates_BG, 4, axis=-1)
        c_BH = f_BH * carry.c + i_BH * g_BH
        h_BH = o_BH * jnp.tanh(c_BH)
        return LSTMCarry(c_BH, h_BH), (store(h_BH), store(c_BH), store(gates_BG))

    last, (y, c, gates) = jax.lax.scan(step, carry, z_TBG)
    return (_operand(y), last), _Saved(weights, x, carry, y, c, gates)


def _backward(dtype: str, saved: _Saved, cotangents: tuple[Array, LSTMCarry]) -> tuple[LSTMWeights, Any, LSTMCarry]:
    weights, x, first, y, _, _ = saved
    store = functools.partial(_store, dtype=jnp.dtype(dtype))
    dz, carry = _backward_in_time(dtype, saved, cotangents)
    dw_hh = _weight_gradient(jnp.concatenate([store(first.h)[None], y[:-1]]), dz)
    if jnp.issubdtype(x.dtype, jnp.integer):
        # On CPUs, a matmul with one-hot vectors is faster than a scatter-add.
        one_hot = _bits(jax.nn.one_hot(x.reshape(-1), weights.w_ih.shape[0], dtype=dtype, axis=0))
        dw_ih = jnp.concatenate([_product(one_hot, rows_of(d)) for d in dz], axis=-1)
        # Each one-hot column contains a single 1, so the rows of dw_ih sum to the bias gradient.
        return LSTMWeights(dw_ih, dw_hh, jnp.sum(dw_ih, axis=0)), np.zeros(x.shape, jax.dtypes.float0), carry
    dw_ih = _weight_gradient(_bits(x), dz)
    bias = jnp.concatenate([jnp.sum(_load(d), axis=(0, 1)) for d in dz])
    dx = _sum(
        _product(rows_of(d), _transpose(store(w))) for d, w in zip(dz, jnp.split(weights.w_ih, 4, axis=-1), strict=True)
    )
    return LSTMWeights(dw_ih, dw_hh, bias), _operand(store(jnp.reshape(dx, x.shape))), carry


def _backward_in_time(
    dtype: str, saved: _Saved, cotangents: tuple[Array, LSTMCarry]
) -> tuple[tuple[Array, ...], LSTMCarry]:
    """Returns dz, the pre-activation gradient, as four [T, B, H] arrays, and the gradient of the initial carry."""
    store = functools.partial(_store, dtype=jnp.dtype(dtype))
    dy, last = cotangents
    c_before = jnp.concatenate([store(saved.carry.c)[None], saved.c[:-1]])
    # One [B, H] x [H, H] matmul per gate, because concatenating the four gradients first would take another pass.
    w_hh_T = [_operand(_transpose(store(w))) for w in jnp.split(saved.weights.w_hh, 4, axis=-1)]

    def step(carry: LSTMCarry, at: tuple[Array, ...]) -> tuple[LSTMCarry, tuple[Array, ...]]:
        dy_BH, c_BH, c_before_BH, gates_BG = (_load(part) for part in at)
        i_BH, f_BH, g_BH, o_BH = jnp.split(gates_BG, 4, axis=-1)
        dh_BH = carry.h + dy_BH
        tanh_c_BH = jnp.tanh(c_BH)
        dc_BH = carry.c + dh_BH * o_BH * (1 - tanh_c_BH**2)
        dz = (
            dc_BH * g_BH * i_BH * (1 - i_BH),
            dc_BH * c_before_BH * f_BH * (1 - f_BH),
            dc_BH * i_BH * (1 - g_BH**2),
            dh_BH * tanh_c_BH * o_BH * (1 - o_BH),
        )
        # The barrier makes XLA write dz only once, for both the matmuls of this step and those after the loop.
        dz = jax.lax.optimization_barrier(tuple(store(d) for d in dz))
        dh_BH = _sum(_product(d, w) for d, w in zip(dz, w_hh_T, strict=True))
        return LSTMCarry(dc_BH * f_BH, dh_BH), dz

    carry, dz = jax.lax.scan(step, last, (_bits(dy), saved.c, c_before, saved.gates), reverse=True)
    return dz, carry


def _weight_gradient(x: Array, dz: tuple[Array, ...]) -> Array:
    """Multiplies x [T, B, D] by the four [T, B, H] arrays of dz, one matmul per gate over all steps -> [D, 4H]."""
    x_T = _transpose(rows_of(x))
    return jnp.concatenate([_product(x_T, rows_of(d)) for d in dz], axis=-1)


def _transpose(x: Array) -> Array:
    """Transposes [M, N] in memory; matmuls that read an operand against its layout are slower (by half in bfloat16)."""
    return with_layout_constraint(x.T, Layout((0, 1)))


def _product(x: Array, w: Array) -> Array:
    """Multiplies [M, K] by [K, N], both from `_store` -> [M, N] float32."""
    return matmul(_operand(x), _operand(w))


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _store(x: Array, dtype: jnp.dtype) -> Array:
    """Rounds float32 to bfloat16 (to nearest, ties to even), returned as uint16 bits; if dtype is float32, returns x.

    NaN stays NaN, except for NaNs whose distinguishing bits are all rounded off, which arithmetic never produces.
    """
    if dtype != jnp.bfloat16:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    to_even = jnp.uint32(0x7FFF) + ((bits >> 16) & jnp.uint32(1))
    return ((bits + to_even) >> 16).astype(jnp.uint16)


def _load(stored: Array) -> Array:
    """Converts the result of `_store` to float32."""
    if stored.dtype != jnp.uint16:
        return stored
    return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)


def _operand(stored: Array) -> Array:
    """Reinterprets the result of `_store` in the dtype it was rounded to, for use as a matmul operand."""
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == jnp.uint16 else stored


def _bits(x: Array) -> Array:
    """Undoes `_operand`."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


_layer.defvjp(_forward, _backward)
