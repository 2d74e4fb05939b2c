"""The implementation for Hopper GPUs: all layers in a single loop, with two launches per step.

As in `wavefront`, layer n takes its step at time s - n on diagonal s. One launch is a batched matmul of all layers,
left to XLA: a layer's operand is its previous h next to its input, and its weights are w_hh on top of w_ih. The other
launch is a kernel that does everything else in place. Layer 0's input is a one-hot row, which the kernel writes, so
characters and their gradients are handled like the outputs of the layers below: the weight gradients of all layers are
one matmul after the loop.

Profiled on an H200, `wavefront` spends most of its time on memory traffic (many sequences) or on launches (few): XLA
compiles a step to about four launches, and passes over the same arrays multiple times.

The kernels have been compiled for an H100 and run in interpret mode on a CPU, but never on a GPU. Their speed is
unknown, and they are never chosen by default.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.experimental.mosaic_gpu.step_kernels import (
    THREADS,
    Backward,
    Diagonal,
    Dropout,
    Forward,
    backward_step,
    forward_step,
)
from charjax.ops.lstm.gates import matmul
from charjax.ops.lstm.target import target_is_hopper, target_kind
from charjax.ops.lstm.vma import varying_axes

State = TypeVar("State", Forward, Backward)
Layers = tuple[LSTMWeights, ...]
Carries = tuple[LSTMCarry, ...]

OLDEST_JAX = (0, 11)  # earlier versions cannot pass a kernel an array to update
UNROLL = 10  # steps per loop iteration: the host starts each iteration
# Multiprocessors of an H100, tile size of XLA's matmuls, and the maximum number of partial sums for a kernel to read.
MULTIPROCESSORS, TILE, MOST_SUMMANDS = 132, 128, 8


class Sizes(NamedTuple):
    """L, T, B, and H and D padded to whole thread blocks, D to a multiple of H."""

    layers: int
    time: int
    batch: int
    hidden: int
    inputs: int

    @staticmethod
    def of(weights: Layers, x: Array) -> "Sizes":
        """Returns the sizes for x [T, B] or [T, B, D]."""
        hidden = -(-weights[0].w_hh.shape[0] // THREADS) * THREADS
        inputs = -(-weights[0].w_ih.shape[0] // hidden) * hidden
        return Sizes(len(weights), x.shape[0], x.shape[1], hidden, inputs)

    def summands(self, width: int, columns: int) -> int:
        """Returns the number of summands for a matmul of [L, B, width] by [L, width, columns].

        With few sequences, undivided sums would leave most multiprocessors idle.
        """
        tiles = self.layers * -(-self.batch // TILE) * -(-columns // TILE)
        most = max(1, min(MULTIPROCESSORS // tiles, MOST_SUMMANDS))
        return max(n for n in range(1, most + 1) if width % (n * THREADS) == 0)


def lstm_mosaic_gpu(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm`: `run_stack` for one layer."""
    y, (carry,) = run_stack((weights,), x, (carry,), (), jnp.float32(0), dtype)
    return y, carry


def run_stack(
    weights: Layers,
    x: Array,
    carry: Carries,
    keep: tuple[Array, ...],
    rate: Array,
    dtype: jnp.dtype,
    interpret: Any = None,
) -> tuple[Array, Carries]:
    """Runs a stack of layers; arguments and results are as in `charjax.ops.lstm.api.lstm_stack`.

    Args:
        weights: see above.
        x: see above.
        carry: see above.
        keep: see above.
        rate: see above.
        dtype: see above.
        interpret: Pallas's parameters for interpreting the kernels on any platform, or None to compile them.

    Raises:
        NotImplementedError: the target is not a Hopper GPU, JAX is too old, or x varies over a mesh axis.
    """
    if interpret is None and not target_is_hopper():
        raise NotImplementedError(f"LSTM implementation 'mosaic_gpu' supports only Hopper GPUs, not {target_kind()!r}")
    if jax.__version_info__ < OLDEST_JAX:
        raise NotImplementedError(f"LSTM implementation 'mosaic_gpu' needs JAX 0.11 or later, not {jax.__version__}")
    if varying_axes(x):
        raise NotImplementedError("LSTM implementation 'mosaic_gpu' needs check_vma=False in jax.shard_map")
    x = x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(dtype)
    time_major = functools.partial(jnp.swapaxes, axis1=0, axis2=1)
    y_TBH, carry = _stack(weights, time_major(x), carry, tuple(map(time_major, keep)), rate, dtype.name, interpret)
    return time_major(y_TBH), carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _stack(
    weights: Layers, x: Array, carry: Carries, keep: tuple[Array, ...], rate: Array, dtype: str, interpret: Any
) -> tuple[Array, Carries]:
    return _forward(weights, x, carry, keep, rate, dtype, interpret)[0]


def _forward(
    weights: Layers, x: Array, carry: Carries, keep: tuple[Array, ...], rate: Array, dtype: str, interpret: Any
) -> tuple[tuple[Array, Carries], tuple[Any, ...]]:
    """Takes x [T, B, D] in `dtype` or [T, B] integer, and keep [T, B, H]."""
    hidden, sizes = weights[0].w_hh.shape[0], Sizes.of(weights, x)
    inputs = _in_range(weights, x, sizes)
    w_LXG, bias_LG = _packed(weights, sizes, dtype)
    dropout = _dropout(keep, rate, sizes)

    def step(diagonal: Diagonal, state: Forward) -> Forward:
        product = _matmul(state.operand, w_LXG)
        return forward_step(diagonal, product, bias_LG, inputs, dropout, state, interpret)

    state = _over_diagonals(step, sizes, _first_state(sizes, inputs, carry, dtype))
    h = jnp.swapaxes(state.operand, 1, 2).reshape(sizes.layers, sizes.batch, -1)[..., :hidden].astype(jnp.float32)
    last = tuple(LSTMCarry(state.c[n, :, :hidden], h[n]) for n in range(sizes.layers))
    return (state.y[..., :hidden], last), (weights, x, keep, rate, state.inputs, state.cells, state.z)


def _first_state(sizes: Sizes, x: Array, carry: Carries, dtype: str) -> Forward:
    layers, time, batch, hidden, inputs = sizes
    c, h = (jnp.stack([_pad(part, 1, hidden) for part in parts]) for parts in zip(*carry, strict=True))
    first = x[0] if x.ndim == 3 else jnp.where(x[0, :, None] < hidden + inputs, jax.nn.one_hot(x[0], inputs), jnp.nan)
    below = jnp.zeros((layers, batch, inputs), dtype).at[0].set(first.astype(dtype))
    operand = jnp.concatenate([h.astype(dtype), below], axis=-1)
    summands = sizes.summands(hidden + inputs, 4 * hidden)
    return Forward(
        c,
        jnp.swapaxes(operand.reshape(layers, batch, summands, -1), 1, 2),
        jax.lax.empty((layers, time, batch, hidden + inputs), dtype).at[:, 0].set(operand),
        jax.lax.empty((layers, time + 1, batch, hidden), dtype).at[:, 0].set(c.astype(dtype)),
        jax.lax.empty((layers, time, batch, 4 * hidden), dtype),
        jax.lax.empty((time, batch, hidden), dtype),
    )


def _backward(
    dtype: str, interpret: Any, saved: tuple[Any, ...], cotangents: tuple[Array, Carries]
) -> tuple[Layers, Any, Carries, tuple[Any, ...], Array]:
    weights, x, keep, rate, inputs_LTBX, cells, z = saved
    dy, last = cotangents
    hidden, sizes = weights[0].w_hh.shape[0], Sizes.of(weights, x)
    w_LXG, _ = _packed(weights, sizes, dtype)
    # With a single layer, there is no layer below that would need the rest.
    w_LGX = (w_LXG if sizes.layers > 1 else w_LXG[:, : sizes.hidden]).mT
    dropout = _dropout(keep, rate, sizes)
    dc, dh_last = (jnp.stack([_pad(part, 1, sizes.hidden) for part in parts]) for parts in zip(*last, strict=True))
    dy = _pad(dy, 2, sizes.hidden)

    def step(diagonal: Diagonal, state: Backward) -> Backward:
        dx = _matmul(state.dz, w_LGX)
        return backward_step(diagonal, dx, dy, dh_last, cells, dropout, state, interpret)

    summands = sizes.summands(w_LGX.shape[1], w_LGX.shape[2])
    dz = jnp.zeros((sizes.layers, summands, sizes.batch, w_LGX.shape[1] // summands), dtype)
    state = _over_diagonals(step, sizes, Backward(dc, dz, z), reverse=True)
    # state.dz still holds the dz computed last for each layer, i.e. that of its first time step.
    dh = _matmul(state.dz, w_LGX).sum(axis=1)
    first = tuple(LSTMCarry(state.dc[n, :, :hidden], dh[n, :, :hidden]) for n in range(sizes.layers))
    gradients, dx = _gradients(weights, x, inputs_LTBX, state.z, sizes)
    masks = tuple(np.zeros(mask.shape, jax.dtypes.float0) for mask in keep)
    # The gradient with respect to the rate is defined as zero.
    return gradients, dx, first, masks, jnp.zeros_like(rate)


def _gradients(weights: Layers, x: Array, inputs_LTBX: Array, dz: Array, sizes: Sizes) -> tuple[Layers, Any]:
    """Returns the gradients with respect to the weights and x."""
    rows, hidden = sizes.time * sizes.batch, weights[0].w_hh.shape[0]
    dz_LRG = dz.reshape(sizes.layers, rows, -1)
    dw_LXG = matmul(inputs_LTBX.reshape(sizes.layers, rows, -1).mT, dz_LRG)
    dbias_LG = matmul(jnp.ones((sizes.layers, 1, rows), dz.dtype), dz_LRG)[:, 0]
    gradients = tuple(
        LSTMWeights(
            _cut_gates(dw_LXG[n, sizes.hidden : sizes.hidden + layer.w_ih.shape[0]], hidden),
            _cut_gates(dw_LXG[n, :hidden], hidden),
            _cut_gates(dbias_LG[n], hidden),
        )
        for n, layer in enumerate(weights)
    )
    if jnp.issubdtype(x.dtype, jnp.integer):
        return gradients, np.zeros(x.shape, jax.dtypes.float0)
    w_ih = _pad_gates(weights[0].w_ih, sizes.hidden).astype(x.dtype)
    return gradients, matmul(dz[0], w_ih.T).astype(x.dtype)


def _over_diagonals(
    step: Callable[[Diagonal, State], State], sizes: Sizes, state: State, *, reverse: bool = False
) -> State:
    """Takes the steps of all diagonals, UNROLL per iteration and the remainder outside the loop."""
    trips, left = divmod(sizes.time + sizes.layers - 1, UNROLL)

    def trip(n: Array, state: State, size: int = UNROLL) -> State:
        # The kernel adds the two numbers; adding them here would take another launch per step.
        start = (UNROLL * (trips - 1 - n if reverse else n))[None]
        for offset in sorted(range(size), reverse=reverse):
            state = step((start, jnp.full(1, offset, jnp.int32)), state)
        return state

    state = trip(jnp.int32(-1), state, left) if reverse else state
    state = jax.lax.fori_loop(0, trips, trip, state) if trips else state
    return state if reverse else trip(jnp.int32(trips), state, left)


def _matmul(parts: Array, w: Array) -> Array:
    """Multiplies [L, N, B, X / N] by [L, X, Y] -> [L, N, B, Y] float32, in N summands."""
    return matmul(parts, w.reshape(*parts.shape[:2], -1, w.shape[-1]))


def _in_range(weights: Layers, x: Array, sizes: Sizes) -> Array:
    """Prepares x for the kernels: pads [T, B, D], and replaces out-of-range integers with one that the kernels know."""
    if x.ndim == 3:
        return _pad(x, 2, sizes.inputs)
    return jnp.where(x < weights[0].w_ih.shape[0], x, sizes.hidden + sizes.inputs).astype(jnp.int32)


def _dropout(keep: tuple[Array, ...], rate: Array, sizes: Sizes) -> Dropout | None:
    if not keep:
        return None
    masks = jnp.stack([_pad(mask, 2, sizes.hidden) for mask in keep]).astype(jnp.int8)
    return Dropout(masks, (1 / (1 - rate)).reshape(1))


def _packed(weights: Layers, sizes: Sizes, dtype: str) -> tuple[Array, Array]:
    """Returns the weights of all layers, [L, H + D, 4H] in `dtype`, w_hh on top of w_ih, and the biases [L, 4H]."""

    def rows(array: Array, count: int) -> Array:
        return _pad_gates(_pad(array, 0, count), sizes.hidden)

    packed = [jnp.concatenate([rows(each.w_hh, sizes.hidden), rows(each.w_ih, sizes.inputs)]) for each in weights]
    return jnp.stack(packed).astype(dtype), jnp.stack([_pad_gates(each.bias, sizes.hidden) for each in weights])


def _pad_gates(array: Array, hidden: int) -> Array:
    """Pads the units of each gate: [..., 4H] -> [..., 4 * hidden]."""
    by_gate = array.reshape(*array.shape[:-1], 4, -1)
    return _pad(by_gate, by_gate.ndim - 1, hidden).reshape(*array.shape[:-1], 4 * hidden)


def _cut_gates(array: Array, hidden: int) -> Array:
    """Undoes `_pad_gates`."""
    by_gate = array.reshape(*array.shape[:-1], 4, -1)
    return by_gate[..., :hidden].reshape(*array.shape[:-1], 4 * hidden)


def _pad(array: Array, axis: int, size: int) -> Array:
    """Pads an axis with zeros."""
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, missing)


_stack.defvjp(_forward, _backward)
