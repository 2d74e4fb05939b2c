"""All layers of a stack in a single loop, for GPUs: layer n at time t runs together with layer n + 1 at time t - 1.

Kernel launches dominate on a GPU, and running the layers one after another takes L T steps of multiple launches each.
The cells on a diagonal of the (layer, time) plane are independent, so one batched matmul and one pass over the gates
serve all layers, in T + L - 1 steps (as in Appleyard et al. 2016). The columns of a step's matmul hold h w_hh for the
layer itself and h w_ih for the layer above. The backward loop visits the diagonals in reverse order and overwrites z
with dz; the weight gradients are computed by matmuls after the loop, as in `recompute`.

In the corners, layers with no step to take leave c and h unchanged. `s` indexes the S diagonals.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.dropout import drop
from charjax.ops.lstm.gates import activate, cell, gate_table, input_gates, look_up, matmul, rows_of
from charjax.ops.lstm.vma import alike, empty

State = TypeVar("State")
Layers = tuple[LSTMWeights, ...]

# Diagonals per loop iteration. Their residuals are written together, and the host checks the loop condition once per
# iteration. A smaller number means more kernel launches; a larger one means longer compilation and more matmul results
# in memory.
UNROLL = 10


class _Forward(NamedTuple):
    """The state of the forward loop.

    Attributes:
        c: [L, B, H] float32.
        h: [L, B, H] in the operand dtype, as are the arrays below.
        below: [L - 1, B, H], the input of layers 1 to L - 1: h after dropout; None without dropout.
        kept_h: per layer, [S + 1, B, H], h before diagonal s, and after the last one.
        kept_c: [S + 1, L, B, H], c at the same points.
        kept_z: per layer, [S, B, 4H], the pre-activation gates.
    """

    c: Array
    h: Array
    below: Array | None
    kept_h: tuple[Array, ...]
    kept_c: Array
    kept_z: tuple[Array, ...]


class _Backward(NamedTuple):
    """The state of the backward loop.

    Attributes:
        dc: [L, B, H] float32.
        dx: [L, B, 2H] float32: a layer's dz times its w_hh^T, then dz times its w_ih^T for the layer below.
        z: per layer, [S, B, 4H]: z before diagonal s, dz from there on.
    """

    dc: Array
    dx: Array
    z: tuple[Array, ...]


def lstm_wavefront(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm`: `run_stack` for one layer."""
    y, (carry,) = run_stack((weights,), x, (carry,), (), jnp.float32(0), dtype)
    return y, carry


def run_stack(
    weights: Layers, x: Array, carry: tuple[LSTMCarry, ...], keep: tuple[Array, ...], rate: Array, dtype: jnp.dtype
) -> tuple[Array, tuple[LSTMCarry, ...]]:
    """Runs a stack of layers; arguments and results are as in `charjax.ops.lstm.api.lstm_stack`."""
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    x = jnp.swapaxes(x if one_hot else x.astype(dtype), 0, 1)
    keep = tuple(jnp.swapaxes(mask, 0, 1) for mask in keep)
    y_TBH, carry = _stack(*alike((weights, x, carry, keep, rate)), dtype.name)
    return jnp.swapaxes(y_TBH, 0, 1), carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _stack(
    weights: Layers, x: Array, carry: tuple[LSTMCarry, ...], keep: tuple[Array, ...], rate: Array, dtype: str
) -> tuple[Array, tuple[LSTMCarry, ...]]:
    return _forward(weights, x, carry, keep, rate, dtype)[0]


def _forward(
    weights: Layers, x: Array, carry: tuple[LSTMCarry, ...], keep: tuple[Array, ...], rate: Array, dtype: str
) -> tuple[tuple[Array, tuple[LSTMCarry, ...]], tuple[Any, ...]]:
    """Takes x [T, B, D] in `dtype` or [T, B] integer, and keep [T, B, H]."""
    layers, hidden, time, batch = len(weights), weights[0].w_hh.shape[0], x.shape[0], x.shape[1]
    gates, diagonals = 4 * hidden, time + layers - 1
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    table = gate_table(weights[0], jnp.dtype(dtype)) if one_hot else None
    first = _pad(x if one_hot else input_gates(weights[0], x, jnp.dtype(dtype)), 0, layers - 1)
    bias = jnp.stack([layer.bias for layer in weights])[1:, None]
    products = _products_of(weights, dropped=bool(keep), dtype=dtype)
    keep_SLBH = _skew(keep, layers)

    def step(s: Array, state: _Forward, first: Array, keep_LBH: Array | None) -> tuple[_Forward, Array]:
        own, above = products(state.h, state.below)
        z0 = first if table is None else look_up(table, first)
        z = own + jnp.concatenate([z0[None].astype(jnp.float32), above + bias])
        c, h = cell(z, state.c)
        active = _active(s, layers, time)
        c, h = jnp.where(active, c, state.c), jnp.where(active, h.astype(dtype), state.h)
        below = None if keep_LBH is None else drop(h[:-1], keep_LBH, rate)
        return state._replace(c=c, h=h, below=below), z.astype(dtype)

    def block(start: Array, size: int, state: _Forward) -> _Forward:
        rows, masks = _rows(first, start, size), None if keep_SLBH is None else _rows(keep_SLBH, start, size)
        after, z = [], []
        for n in range(size):
            state, z_LBG = step(start + n, state, rows[n], None if masks is None else masks[n])
            after.append(state)
            z.append(z_LBG)
        return state._replace(
            kept_h=_write(state.kept_h, [one.h for one in after], start + 1),
            kept_c=_put(state.kept_c, [one.c.astype(dtype) for one in after], start + 1),
            kept_z=_write(state.kept_z, z, start),
        )

    c, h = jnp.stack([layer.c for layer in carry]), jnp.stack([layer.h for layer in carry]).astype(dtype)
    state = _Forward(
        c,
        h,
        jnp.zeros_like(h[:-1]) if keep else None,
        _write(tuple(empty((diagonals + 1, batch, hidden), dtype, h) for _ in weights), [h], 0),
        _put(empty((diagonals + 1, layers, batch, hidden), dtype, h), [c.astype(dtype)], 0),
        tuple(empty((diagonals, batch, gates), dtype, h) for _ in weights),
    )
    state = _in_blocks(block, diagonals, state)
    last = tuple(LSTMCarry(c, h.astype(jnp.float32)) for c, h in zip(state.c, state.h, strict=True))
    return (state.kept_h[-1][layers:], last), (weights, x, keep, rate, state.kept_h, state.kept_c, state.kept_z)


def _backward(
    dtype: str, saved: tuple[Any, ...], cotangents: tuple[Array, tuple[LSTMCarry, ...]]
) -> tuple[Layers, Any, tuple[LSTMCarry, ...], tuple[Any, ...], Array]:
    weights, x, keep, rate, kept_h, kept_c, kept_z = saved
    dy, last = cotangents
    layers, time, hidden = len(weights), dy.shape[0], dy.shape[2]
    last_h = jnp.stack([layer.h for layer in last])
    dy = _pad(dy, layers - 1, 0)
    keep_SLBH = _skew(keep, layers)
    # There is no layer below layer 0, so half of its matmul is unused.
    w_ih = [jnp.zeros_like(weights[0].w_hh), *(layer.w_ih for layer in weights[1:])]
    w_LXG = jnp.stack(
        [jnp.concatenate([layer.w_hh, below]).astype(dtype) for layer, below in zip(weights, w_ih, strict=True)]
    )

    def step(
        s: Array, state: _Backward, z: Array, c: Array, c_before: Array, dy: Array, keep_LBH: Array | None
    ) -> tuple[_Backward, Array]:
        i, f, g, o = activate(z)
        tanh_c = jnp.tanh(c)
        from_above = state.dx[1:, :, hidden:]
        from_above = from_above if keep_LBH is None else drop(from_above, keep_LBH, rate)
        dh = state.dx[..., :hidden] + jnp.concatenate([from_above, dy[None].astype(jnp.float32)])
        dh += jnp.where(_time(s, layers) == time - 1, last_h, 0)
        dc = state.dc + dh * o * (1 - tanh_c**2)
        dz = [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)]
        active = _active(s, layers, time)
        dz_LBG = jnp.where(active, jnp.concatenate(dz, axis=-1), 0).astype(dtype)
        return _Backward(jnp.where(active, dc * f, state.dc), matmul(dz_LBG, w_LXG.mT), state.z), dz_LBG

    def block(start: Array, size: int, state: _Backward) -> _Backward:
        z = [_rows(layer, start, size) for layer in state.z]
        c, dy_NBH = _rows(kept_c, start, size + 1).astype(jnp.float32), _rows(dy, start, size)
        masks = None if keep_SLBH is None else _rows(keep_SLBH, start, size)
        dz = []
        for n in reversed(range(size)):
            z_LBG = jnp.stack([layer[n] for layer in z]).astype(jnp.float32)
            mask = None if masks is None else masks[n]
            state, dz_LBG = step(start + n, state, z_LBG, c[n + 1], c[n], dy_NBH[n], mask)
            dz.append(dz_LBG)
        return state._replace(z=_write(state.z, dz[::-1], start))

    dx = empty((layers, dy.shape[1], 2 * hidden), jnp.float32, dy)
    state = _Backward(jnp.stack([layer.c for layer in last]), jnp.zeros_like(dx), kept_z)
    state = _in_blocks(block, time + layers - 1, state, reverse=True)
    gradients, dx = _gradients(weights, x, keep, kept_h, state.z, rate, dtype)
    # The last matmul of each layer, which gives the gradient of the state before its first step.
    dh = [matmul(dz[n], layer.w_hh.astype(dtype).T) for n, (dz, layer) in enumerate(zip(state.z, weights, strict=True))]
    carry = tuple(LSTMCarry(dc, dh) for dc, dh in zip(state.dc, dh, strict=True))
    masks = tuple(np.zeros(mask.shape, jax.dtypes.float0) for mask in keep)
    # The gradient with respect to the rate is defined as zero.
    return gradients, dx, carry, masks, jnp.zeros_like(rate)


def _gradients(
    weights: Layers,
    x: Array,
    keep: tuple[Array, ...],
    kept_h: tuple[Array, ...],
    dz: tuple[Array, ...],
    rate: Array,
    dtype: str,
) -> tuple[Layers, Any]:
    """Returns the gradients of the weights and of x, given the dz of all diagonals (zero where a layer has no step)."""
    gradients = []
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    for n, layer in enumerate(weights):
        if n == 0:
            # After the last step of layer 0, its dz is zero, so the padding of x has no effect.
            x_pad = _pad(x, 0, len(weights) - 1)
            rows = jax.nn.one_hot(x_pad.reshape(-1), layer.w_ih.shape[0], dtype=dtype) if one_hot else rows_of(x_pad)
        else:
            below = kept_h[n - 1][:-1]
            below = drop(below, _pad(keep[n - 1], n, len(weights) - 1 - n), rate) if keep else below
            rows = rows_of(below)
        dz_rows = rows_of(dz[n])
        dbias = matmul(jnp.ones((1, dz_rows.shape[0]), dtype), dz_rows)[0]
        dw_hh = matmul(rows_of(kept_h[n][:-1]).T, dz_rows)
        gradients.append(LSTMWeights(matmul(rows.T, dz_rows), dw_hh, dbias))
    if one_hot:
        return tuple(gradients), np.zeros(x.shape, jax.dtypes.float0)
    return tuple(gradients), matmul(dz[0][: x.shape[0]], weights[0].w_ih.astype(dtype).T).astype(dtype)


def _in_blocks(
    block: Callable[[Array, int, State], State], diagonals: int, state: State, *, reverse: bool = False
) -> State:
    """Runs `block(first diagonal, number, state)` over all diagonals, in blocks of UNROLL and a remainder."""
    blocks, left = divmod(diagonals, UNROLL)

    def trip(n: Array, state: State) -> State:
        return block((blocks - 1 - n if reverse else n) * UNROLL, UNROLL, state)

    def rest(state: State) -> State:
        return block(jnp.int32(blocks * UNROLL), left, state) if left else state

    def loop(state: State) -> State:
        return jax.lax.fori_loop(0, blocks, trip, state) if blocks else state

    return loop(rest(state)) if reverse else rest(loop(state))


def _products_of(weights: Layers, *, dropped: bool, dtype: str) -> Callable[[Array, Any], tuple[Array, Array]]:
    """Returns a function that multiplies h and what comes from the layers below by the weights.

    It maps (h [L, B, H], below [L - 1, B, H] or None) to products (own [L, B, 4H], above [L - 1, B, 4H]) in float32.
    """
    w_hh = jnp.stack([layer.w_hh for layer in weights]).astype(dtype)
    gates = w_hh.shape[-1]
    if len(weights) == 1:
        return lambda h, below: (matmul(h, w_hh), jnp.zeros((0, h.shape[1], gates)))
    if dropped:
        w_ih = jnp.stack([layer.w_ih for layer in weights[1:]]).astype(dtype)
        return lambda h, below: (matmul(h, w_hh), matmul(below, w_ih))
    # There is no layer above the last one, so half of its matmul is unused, but this is cheaper than a second launch.
    above = [*(layer.w_ih for layer in weights[1:]), jnp.zeros_like(weights[0].w_hh)]
    both = jnp.concatenate([w_hh, jnp.stack(above).astype(dtype)], axis=-1)

    def products(h: Array, below: Any) -> tuple[Array, Array]:
        del below
        z = matmul(h, both)
        return z[..., :gates], z[:-1, :, gates:]

    return products


def _time(s: Array, layers: int) -> Array:
    return s - jnp.arange(layers)[:, None, None]


def _active(s: Array, layers: int, time: int) -> Array:
    """Returns whether each layer has a step on diagonal s, [L, 1, 1] bool."""
    return (_time(s, layers) >= 0) & (_time(s, layers) < time)


def _pad(x: Array, before: int, after: int) -> Array:
    """Pads [T, ...] with steps of zeros before and after."""
    return jnp.pad(x, ((before, after), *((0, 0),) * (x.ndim - 1)))


def _skew(keep: tuple[Array, ...], layers: int) -> Array | None:
    """Arranges the masks [T, B, H] of layers 0 to L - 2 by diagonal -> [S, L - 1, B, H]; None without masks."""
    return jnp.stack([_pad(mask, n, layers - 1 - n) for n, mask in enumerate(keep)], axis=1) if keep else None


def _rows(stack: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(stack, start, size)


def _put(stack: Array, rows: list[Array], start: Array | int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(stack, jnp.stack(rows), start, 0)


def _write(stacks: tuple[Array, ...], rows: list[Array], start: Array | int) -> tuple[Array, ...]:
    """Writes the rows [L, B, ...] of successive diagonals to the stack of each layer."""
    return tuple(_put(stack, [row[n] for row in rows], start) for n, stack in enumerate(stacks))


_stack.defvjp(_forward, _backward)
