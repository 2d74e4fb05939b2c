"""The implementation for TPUs, which is also the scheme behind the GPU and TPU kernels: few residuals, few launches.

On these devices, a time step is bound by kernel launches and memory traffic, not arithmetic. The forward loop saves
only h and c. The backward pass recomputes all gates with one matmul over all steps and turns them into factors, so that
its loop needs only a few multiplications and one matmul per step. A single matmul after the loop computes the weight
gradients; a column of ones among its inputs yields the bias gradient. The two loops over time are parameters: those in
this module are compiled by XLA; other modules replace them with kernels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import activate, cell, input_gates, matmul, rows_of
from charjax.ops.lstm.vma import alike, empty


class Factors(NamedTuple):
    """The factors of the backward loop, each [T, B, H] in the operand dtype.

    If dh and dc are the cotangents of h_t and c_t: dc += dh of_c; dz = [dc of_i, dc of_f, dc of_g, dh of_o]; then, for
    step t - 1, dc = dc f and dh = dz w_hh^T.
    """

    of_c: Array
    of_i: Array
    of_f: Array
    of_g: Array
    of_o: Array
    f: Array


class Loops(NamedTuple):
    """The loops over time of an implementation; T is at least 1.

    Attributes:
        forward: (z [T, B, 4H], the input term of the gates plus bias, and w_hh [H, 4H], both in the operand dtype;
            carry before the first step) -> (h [T, B, H] and c [T, B, H] in the operand dtype, carry after the last
            step).
        backward: (dy [T, B, H] in the operand dtype, factors, w_hh, cotangent of the carry after the last step) ->
            (dz [T, B, 4H] in the operand dtype, cotangent of the carry before the first step).
    """

    forward: Callable[[Array, Array, LSTMCarry], tuple[Array, Array, LSTMCarry]]
    backward: Callable[[Array, Factors, Array, LSTMCarry], tuple[Array, LSTMCarry]]


def lstm_recompute(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` for GPUs and TPUs without custom kernels; XLA compiles the loops."""
    return run_layer(XLA, weights, x, carry, dtype)


def run_layer(
    loops: Loops, weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype
) -> tuple[Array, LSTMCarry]:
    """Runs one layer over x [B, T, D] or integer [B, T] with the given loops -> (y [B, T, H] in `dtype`, carry)."""
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    x = jnp.swapaxes(x if one_hot else x.astype(dtype), 0, 1)
    y_TBH, carry = _layer(loops, *alike((weights, x, carry)), dtype.name)
    return jnp.swapaxes(y_TBH, 0, 1), carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def _layer(loops: Loops, weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: str) -> tuple[Array, LSTMCarry]:
    return _forward(loops, weights, x, carry, dtype)[0]


def _forward(
    loops: Loops, weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: str
) -> tuple[tuple[Array, LSTMCarry], tuple[LSTMWeights, Array, LSTMCarry, Array, Array]]:
    """Takes x [T, B, D] in `dtype` or [T, B] integer; saves y and c, [T, B, H] in `dtype`."""
    y, c, last = loops.forward(input_gates(weights, x, jnp.dtype(dtype)), weights.w_hh.astype(dtype), carry)
    return (y, last), (weights, x, carry, y, c)


def _loop_forward(z_TBG: Array, w_hh: Array, carry: LSTMCarry) -> tuple[Array, Array, LSTMCarry]:
    time, batch, gates = z_TBG.shape
    dtype = w_hh.dtype

    def step(t: Array, state: tuple[LSTMCarry, Array, Array]) -> tuple[LSTMCarry, Array, Array]:
        carry, h_TBH, c_TBH = state
        z_BG = _at(z_TBG, t).astype(jnp.float32) + matmul(carry.h.astype(dtype), w_hh)
        c_BH, h_BH = cell(z_BG, carry.c)
        return LSTMCarry(c_BH, h_BH), _put(h_TBH, h_BH.astype(dtype), t), _put(c_TBH, c_BH.astype(dtype), t)

    h_TBH, c_TBH = (empty((time, batch, gates // 4), dtype, z_TBG) for _ in range(2))
    last, h_TBH, c_TBH = jax.lax.fori_loop(0, time, step, (carry, h_TBH, c_TBH))
    return h_TBH, c_TBH, last


def _loop_backward(dy: Array, factors: Factors, w_hh: Array, last: LSTMCarry) -> tuple[Array, LSTMCarry]:
    time, batch, hidden = dy.shape

    def step(n: Array, state: tuple[LSTMCarry, Array]) -> tuple[LSTMCarry, Array]:
        carry, dz_TBG = state
        t = time - 1 - n
        of_c, of_i, of_f, of_g, of_o, f = (_at(factor, t).astype(jnp.float32) for factor in factors)
        dh_BH = carry.h + _at(dy, t)
        dc_BH = carry.c + dh_BH * of_c
        dz_BG = jnp.concatenate([dc_BH * of_i, dc_BH * of_f, dc_BH * of_g, dh_BH * of_o], axis=-1).astype(w_hh.dtype)
        return LSTMCarry(dc_BH * f, matmul(dz_BG, w_hh.T)), _put(dz_TBG, dz_BG, t)

    carry, dz = jax.lax.fori_loop(0, time, step, (last, empty((time, batch, 4 * hidden), w_hh.dtype, dy)))
    return dz, carry


XLA = Loops(_loop_forward, _loop_backward)


def _backward(
    loops: Loops,
    dtype: str,
    saved: tuple[LSTMWeights, Array, LSTMCarry, Array, Array],
    cotangents: tuple[Array, LSTMCarry],
) -> tuple[LSTMWeights, Any, LSTMCarry]:
    weights, x, first, y, c = saved
    dy, last = cotangents
    w_hh = weights.w_hh.astype(dtype)
    h_before = jnp.concatenate([first.h.astype(dtype)[None], y])[:-1]
    c_before = jnp.concatenate([first.c.astype(dtype)[None], c])[:-1].astype(jnp.float32)
    z_TBG = input_gates(weights, x, jnp.dtype(dtype)) + matmul(h_before, w_hh)
    i, f, g, o = activate(z_TBG)
    tanh_c = jnp.tanh(c.astype(jnp.float32))
    of_c = o * (1 - tanh_c**2)
    of_i, of_f, of_g, of_o = g * i * (1 - i), c_before * f * (1 - f), i * (1 - g**2), tanh_c * o * (1 - o)
    factors = Factors(*(factor.astype(dtype) for factor in (of_c, of_i, of_f, of_g, of_o, f)))
    dz, carry = loops.backward(dy, factors, w_hh, last)
    dz = rows_of(dz)
    hidden = weights.w_hh.shape[0]
    if jnp.issubdtype(x.dtype, jnp.integer):
        one_hot = jax.nn.one_hot(x.reshape(-1), weights.w_ih.shape[0], dtype=dtype)
        gradient = matmul(jnp.concatenate([one_hot, rows_of(h_before)], axis=-1).T, dz)
        dw_ih, dw_hh = gradient[:-hidden], gradient[-hidden:]
        # Each one-hot row contains a single 1, so the rows of dw_ih sum to the bias gradient.
        return LSTMWeights(dw_ih, dw_hh, jnp.sum(dw_ih, axis=0)), np.zeros(x.shape, jax.dtypes.float0), carry
    inputs = jnp.concatenate([rows_of(x), rows_of(h_before), jnp.ones((dz.shape[0], 1), dtype)], axis=-1)
    gradient = matmul(inputs.T, dz)
    dx = matmul(dz, weights.w_ih.astype(dtype).T).astype(dtype).reshape(x.shape)
    return LSTMWeights(gradient[: x.shape[-1]], gradient[x.shape[-1] : -1], gradient[-1]), dx, carry


def _at(stack: Array, t: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(stack, t, keepdims=False)


def _put(stack: Array, row: Array, t: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, row, t, 0)


_layer.defvjp(_forward, _backward)
