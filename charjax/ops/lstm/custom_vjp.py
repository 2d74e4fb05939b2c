"""The fast portable implementation: a hand-written backward pass, arranged for processors.

Differentiating `lax.scan` carries the gradient of the weights through the reverse loop and saves twice as much as is
needed. Here the reverse loop makes dz alone, of which all weight gradients are products after it. What is saved per
step: the gates after their activations, c and h. Why it is arranged as it is, and what else was tried, stands in
benchmarks/NOTES.md.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from charjax.array_types import Array, LSTMCarry, LSTMWeights


class _Saved(NamedTuple):
    """What the backward pass needs: the inputs and, as `pack` keeps them, `y`, `c` [T, B, H] and `gates` [T, B, 4H]."""

    weights: LSTMWeights
    x: Array
    carry: LSTMCarry
    y: Array
    c: Array
    gates: Array


def lstm_custom_vjp(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """The fast portable implementation of `charjax.ops.lstm`."""
    y_TBH, carry = _layer(weights, jnp.swapaxes(x, 0, 1), carry, dtype.name)
    return jnp.swapaxes(y_TBH, 0, 1), carry


def _layer_primal(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: str) -> tuple[Array, LSTMCarry]:
    return _forward(weights, x, carry, dtype)[0]


_layer = jax.custom_vjp(_layer_primal, nondiff_argnums=(3,))


def _forward(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: str) -> tuple[tuple[Array, LSTMCarry], _Saved]:
    """X [T, B, D] float or [T, B] integer."""
    pack_ = functools.partial(pack, dtype=jnp.dtype(dtype))
    hidden = carry.c.shape[-1]
    w_hh = operand(pack_(weights.w_hh))
    if jnp.issubdtype(x.dtype, jnp.integer):
        # The bias goes into the table of rows, which is small, and not into what is looked up, which is large.
        table = unpack(pack_(weights.w_ih)) + weights.bias[None]
        z_TBG, bias = jnp.take(table, x, axis=0), None
    else:
        x = x if x.dtype == dtype else operand(pack_(x.astype(jnp.float32)))
        z_TBG = _product(_rows(kept(x)), pack_(weights.w_ih)).reshape(*x.shape[:2], 4 * hidden)
        bias = weights.bias
    # sigmoid(z) = (1 + tanh(z / 2)) / 2: one loop over all gates, with numbers that differ by gate, runs at the speed
    # of the vector units, where four activations joined together branch at every element.
    half = jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], jnp.float32), hidden, total_repeat_length=4 * hidden)[None]

    def step(carry: LSTMCarry, z_BG: Array) -> tuple[LSTMCarry, tuple[Array, Array, Array]]:
        z_BG = z_BG + jnp.matmul(operand(pack_(carry.h)), w_hh, preferred_element_type=jnp.float32)
        if bias is not None:
            z_BG = z_BG + bias[None]
        gates_BG = half * jnp.tanh(half * z_BG) + (1 - half)
        i_BH, f_BH, g_BH, o_BH = jnp.split(gates_BG, 4, axis=-1)
        c_BH = f_BH * carry.c + i_BH * g_BH
        h_BH = o_BH * jnp.tanh(c_BH)
        return LSTMCarry(c_BH, h_BH), (pack_(h_BH), pack_(c_BH), pack_(gates_BG))

    last, (y, c, gates) = jax.lax.scan(step, carry, z_TBG)
    return (operand(y), last), _Saved(weights, x, carry, y, c, gates)


def _backward(dtype: str, saved: _Saved, cotangents: tuple[Array, LSTMCarry]) -> tuple[LSTMWeights, Any, LSTMCarry]:
    weights, x, first, y, _, _ = saved
    pack_ = functools.partial(pack, dtype=jnp.dtype(dtype))
    dz, carry = _backward_in_time(dtype, saved, cotangents)
    dw_hh = _weight_gradient(jnp.concatenate([pack_(first.h)[None], y[:-1]]), dz)
    if jnp.issubdtype(x.dtype, jnp.integer):
        # On processors, a one-hot product is faster than a scatter-add.
        one_hot = kept(jax.nn.one_hot(x.reshape(-1), weights.w_ih.shape[0], dtype=dtype, axis=0))
        dw_ih = jnp.concatenate([_product(one_hot, _rows(d)) for d in dz], axis=-1)
        # Each one-hot column holds a single one, so the table's rows add up to the bias's gradient.
        return LSTMWeights(dw_ih, dw_hh, jnp.sum(dw_ih, axis=0)), np.zeros(x.shape, jax.dtypes.float0), carry
    dw_ih = _weight_gradient(kept(x), dz)
    bias = jnp.concatenate([jnp.sum(unpack(d), axis=(0, 1)) for d in dz])
    dx = _sum(
        _product(_rows(d), _transpose(pack_(w))) for d, w in zip(dz, jnp.split(weights.w_ih, 4, axis=-1), strict=True)
    )
    return LSTMWeights(dw_ih, dw_hh, bias), operand(pack_(jnp.reshape(dx, x.shape))), carry


def _backward_in_time(
    dtype: str, saved: _Saved, cotangents: tuple[Array, LSTMCarry]
) -> tuple[tuple[Array, ...], LSTMCarry]:
    """The gradient of the gates before their activations, each [T, B, H], and of the carry before the first step."""
    pack_ = functools.partial(pack, dtype=jnp.dtype(dtype))
    dy, last = cotangents
    c_before = jnp.concatenate([pack_(saved.carry.c)[None], saved.c[:-1]])
    # One [B, H] x [H, H] product per gate: four gradients joined to [B, 4H] first would cost a pass of their own.
    w_hh_T = [operand(_transpose(pack_(w))) for w in jnp.split(saved.weights.w_hh, 4, axis=-1)]

    def step(carry: LSTMCarry, at: tuple[Array, ...]) -> tuple[LSTMCarry, tuple[Array, ...]]:
        dy_BH, c_BH, c_before_BH, gates_BG = (unpack(part) for part in at)
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
        # Written once, for the products of this step and for those after the loop.
        dz = jax.lax.optimization_barrier(tuple(pack_(d) for d in dz))
        dh_BH = _sum(_product(d, w) for d, w in zip(dz, w_hh_T, strict=True))
        return LSTMCarry(dc_BH * f_BH, dh_BH), dz

    carry, dz = jax.lax.scan(step, last, (kept(dy), saved.c, c_before, saved.gates), reverse=True)
    return dz, carry


def _weight_gradient(x: Array, dz: tuple[Array, ...]) -> Array:
    """X [T, B, D] and four [T, B, H] -> [D, 4H], in one product per gate over all steps."""
    x_T = _transpose(_rows(x))
    return jnp.concatenate([_product(x_T, _rows(d)) for d in dz], axis=-1)


def _transpose(x: Array) -> Array:
    """[M, N] -> [N, M], made in memory: products that read an operand crosswise are slower, in bfloat16 by half."""
    return with_layout_constraint(x.T, Layout((0, 1)))


def _product(x: Array, w: Array) -> Array:
    """[M, K] times [K, N] -> [M, N] float32, of what `pack` made."""
    return jnp.matmul(operand(x), operand(w), preferred_element_type=jnp.float32)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _rows(x: Array) -> Array:
    """[T, B, D] -> [T * B, D]."""
    return jnp.reshape(x, (x.shape[0] * x.shape[1], x.shape[-1]))


_layer.defvjp(_forward, _backward)


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
