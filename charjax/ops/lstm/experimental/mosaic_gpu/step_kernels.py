"""Pallas kernels that do everything in a step of `stack` but its matmul, in one launch, and update arrays in place.

Each thread block computes some units of one layer and sequence. It needs nothing from other thread blocks, so there is
nothing to wait for, and reads and writes each number once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.array_types import Array

THREADS = 128  # per thread block
SIZES = (512, 256, THREADS)  # units per thread block; with 512, each thread loads 16 bytes at a time


class Forward(NamedTuple):
    """The arrays that the forward kernel updates; at each time, a layer reads its own previous h and its input.

    Attributes:
        c: [L, B, H] float32, the cell state.
        operand: [L, N, B, (H + D) / N], h and the input for the layer's next time, for a matmul in N summands.
        inputs: [L, T, B, H + D], `operand` at each time.
        cells: [L, T + 1, B, H], c before each time and after the last one.
        z: [L, T, B, 4H], the pre-activation gates.
        y: [T, B, H], h of the last layer.
    """

    c: Any
    operand: Any
    inputs: Any
    cells: Any
    z: Any
    y: Any


class Backward(NamedTuple):
    """The arrays that the backward kernel updates.

    Attributes:
        dc: [L, B, H] float32, the cotangent of the cell state.
        dz: [L, N, B, 4H / N], the cotangent of the gates, for a matmul in N summands.
        z: [L, T, B, 4H], z before a layer's step, dz after it.
    """

    dc: Any
    dz: Any
    z: Any


class Dropout(NamedTuple):
    """Dropout between the layers.

    Attributes:
        keep: [L - 1, T, B, H] int8, 1 for the outputs to keep.
        scale: [1] float32, the factor for those outputs.
    """

    keep: Any
    scale: Any


Diagonal = tuple[Array, Array]
"""Two [1] int32 whose sum is s; layer n takes its step at time s - n, if there is such a time."""


def forward_step(
    diagonal: Diagonal,
    product: Array,
    bias: Array,
    x: Array,
    dropout: Dropout | None,
    state: Forward,
    interpret: Any,
) -> Forward:
    """Takes one step of all layers.

    Args:
        diagonal: the step.
        product: [L, N, B, 4H] float32, the operand times the weights, in N summands.
        bias: [L, 4H] float32.
        x: the input of layer 0, [T, B] int32 in [0, D] (D stands for a character out of range) or [T, B, D].
        dropout: None for no dropout.
        state: the arrays before the step.
        interpret: Pallas's parameters for interpreting the kernel, or None to compile it.
    """
    return Forward(
        *_launch(
            _forward, (diagonal, product, bias, x, dropout), state, state.c.shape, state.operand.shape[3], interpret
        )
    )


def backward_step(
    diagonal: Diagonal,
    dx: Array,
    dy: Array,
    last: Array,
    cells: Array,
    dropout: Dropout | None,
    state: Backward,
    interpret: Any,
) -> Backward:
    """Takes one step of all layers, backward.

    Args:
        diagonal: the step.
        dx: [L, N, B, H + D] float32, the dz of the previous call times the transposed weights, in N summands.
        dy: [T, B, H], the cotangent of y.
        last: [L, B, H] float32, the cotangent of h after the last time.
        cells: [L, T + 1, B, H], from the forward pass.
        dropout: None for no dropout.
        state: the arrays before the step.
        interpret: Pallas's parameters for interpreting the kernel, or None to compile it.
    """
    return Backward(
        *_launch(
            _backward, (diagonal, dx, dy, last, cells, dropout), state, state.dc.shape, state.dz.shape[3], interpret
        )
    )


def _launch(
    body: Any, arguments: tuple[Any, ...], state: Any, shape: tuple[int, ...], part: int, interpret: Any
) -> list[Array]:
    """Runs a kernel over [L, B, H] that updates the arrays of `state`; `part` is the width of a summand."""
    layers, batch, hidden = shape
    units = next(size for size in SIZES if hidden % size == 0 and part % size == 0)
    leaves, structure = jax.tree.flatten(arguments)

    def run(*refs: Any) -> None:
        body(
            _Place.here(units),
            *jax.tree.unflatten(structure, list(refs[: len(leaves)])),
            type(state)(*refs[len(leaves) :]),
        )

    kernel = plgpu.kernel(
        run,
        out_type=(),
        # Only the last axis may exceed 65535 in CUDA.
        grid=(layers, hidden // units, batch),
        grid_names=("layer", "tile", "row"),
        # Compiles tanh to one instruction, whose error, 2^-11, is smaller than that of rounding operands to bfloat16.
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )
    updated: list[Array] = pl.run_state(lambda refs: kernel(*leaves, *refs))(list(state))
    return updated


class _Place(NamedTuple):
    """The numbers that a thread block computes: `units` units of a layer and sequence, from `start` on."""

    layer: Array
    row: Array
    start: Array
    units: int

    @staticmethod
    def here(units: int) -> "_Place":
        layer, tile, row = (jax.lax.axis_index(name) for name in ("layer", "tile", "row"))
        return _Place(layer, row, tile * units, units)

    def after(self, width: int) -> Any:
        """Returns the units, in rows that begin with `width` other numbers."""
        return pl.ds(width + self.start, self.units)

    def time(self, diagonal: Any) -> Array:
        """Returns the time of the layer's step."""
        time: Array = diagonal[0][0] + diagonal[1][0] - self.layer
        return time


def _forward(at: _Place, diagonal: Any, product: Any, bias: Any, x: Any, dropout: Any, state: Forward) -> None:
    t, time, hidden = at.time(diagonal), x.shape[0], state.c.shape[2]

    @pl.when((t >= 0) & (t < time))
    def step() -> None:
        gates = [at.after(gate * hidden) for gate in range(4)]
        sums = [_sum_of(product, at.layer, at.row, gate) + bias[at.layer, gate] for gate in gates]
        for gate, total in zip(gates, sums, strict=True):
            state.z[at.layer, t, at.row, gate] = total.astype(state.z.dtype)
        i, f, g, o = sums
        c = _sigmoid(f) * state.c[at.layer, at.row, at.after(0)] + _sigmoid(i) * jnp.tanh(g)
        state.c[at.layer, at.row, at.after(0)] = c
        state.cells[at.layer, t + 1, at.row, at.after(0)] = c.astype(state.cells.dtype)
        _hand_on(at, t, _sigmoid(o) * jnp.tanh(c), dropout, state)
        pl.when((at.layer == 0) & (t + 1 < time))(lambda: _read_next(at, t + 1, x, state))


def _hand_on(at: _Place, t: Array, h: Array, dropout: Any, state: Forward) -> None:
    """Writes a layer's h to wherever it is read: by the layer at the next time, by the layer above, or as y."""
    layers, time, hidden = state.c.shape[0], state.inputs.shape[1], state.c.shape[2]
    rounded = h.astype(state.operand.dtype)
    _put(state.operand, at.layer, at.row, at.start, rounded)

    @pl.when(t + 1 < time)
    def keep_for_gradients() -> None:
        state.inputs[at.layer, t + 1, at.row, at.after(0)] = rounded

    @pl.when(at.layer == layers - 1)
    def output() -> None:
        state.y[t, at.row, at.after(0)] = rounded

    @pl.when(at.layer < layers - 1)
    def layer_above() -> None:
        below = rounded if dropout is None else (h * _factor(at, t, dropout)).astype(rounded.dtype)
        _put(state.operand, at.layer + 1, at.row, hidden + at.start, below)
        state.inputs[at.layer + 1, t, at.row, at.after(hidden)] = below


def _read_next(at: _Place, t: Array, x: Any, state: Forward) -> None:
    """Writes part of layer 0's input at time t."""
    hidden, width = state.c.shape[2], state.inputs.shape[3]
    # The thread blocks of a layer cover its H units; there may be several times as many inputs.
    for first in range(0, width - hidden, hidden):
        values = _one_hot(at, first, x[t, at.row], width) if x.ndim == 2 else x[t, at.row, at.after(first)]
        values = values.astype(state.operand.dtype)
        _put(state.operand, at.layer, at.row, hidden + first + at.start, values)
        state.inputs[at.layer, t, at.row, at.after(hidden + first)] = values


def _one_hot(at: _Place, first: int, character: Array, width: int) -> Array:
    """Returns a part of a one-hot row; NaN for a character out of range, whose number is beyond all rows."""
    numbers = jax.lax.broadcasted_iota(jnp.int32, (at.units,), 0) + first + at.start
    return jnp.where(numbers == character, 1.0, 0.0) + jnp.where(character >= width, jnp.nan, 0.0)


def _backward(
    at: _Place, diagonal: Any, dx: Any, dy: Any, last: Any, cells: Any, dropout: Any, state: Backward
) -> None:
    t, time, hidden = at.time(diagonal), dy.shape[0], state.dc.shape[2]

    @pl.when((t >= 0) & (t < time))
    def step() -> None:
        gates = [at.after(gate * hidden) for gate in range(4)]
        dh = _sum_of(dx, at.layer, at.row, at.after(0)) + _from_above(at, t, dx, dy, dropout)
        dh += jnp.where(t == time - 1, 1.0, 0.0) * last[at.layer, at.row, at.after(0)]
        i, f, g, o = (state.z[at.layer, t, at.row, gate].astype(jnp.float32) for gate in gates)
        i, f, g, o = _sigmoid(i), _sigmoid(f), jnp.tanh(g), _sigmoid(o)
        before, after = (cells[at.layer, t + n, at.row, at.after(0)].astype(jnp.float32) for n in range(2))
        tanh_c = jnp.tanh(after)
        dc = state.dc[at.layer, at.row, at.after(0)] + dh * o * (1 - tanh_c * tanh_c)
        state.dc[at.layer, at.row, at.after(0)] = dc * f
        dz = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)
        for number, part in enumerate(dz):
            rounded = part.astype(state.z.dtype)
            state.z[at.layer, t, at.row, gates[number]] = rounded
            _put(state.dz, at.layer, at.row, number * hidden + at.start, rounded)


def _from_above(at: _Place, t: Array, dx: Any, dy: Any, dropout: Any) -> Array:
    """Returns the cotangent of a layer's output: from the layer above or, for the last layer, dy."""
    layers, hidden = dx.shape[0], dy.shape[2]

    def from_layer() -> Array:
        part = _sum_of(dx, at.layer + 1, at.row, at.after(hidden))
        return part if dropout is None else part * _factor(at, t, dropout)

    def from_output() -> Array:
        return dy[t, at.row, at.after(0)].astype(jnp.float32)

    if layers == 1:
        return from_output()
    found: Array = jax.lax.cond(at.layer == layers - 1, from_output, from_layer)
    return found


def _factor(at: _Place, t: Array, dropout: Any) -> Array:
    factor: Array = dropout.keep[at.layer, t, at.row, at.after(0)].astype(jnp.float32) * dropout.scale[0]
    return factor


def _sum_of(product: Any, layer: Array, row: Array, columns: Any) -> Array:
    """Returns some columns of a row of a product that is stored as partial sums."""
    parts = [product[layer, summand, row, columns] for summand in range(product.shape[1])]
    return functools.reduce(jnp.add, parts)


def _put(operand: Any, layer: Array, row: Array, start: Array, values: Array) -> None:
    """Writes part of a row of `operand`, into the block of columns that `start` lies in."""
    width = operand.shape[3]
    operand[layer, start // width, row, pl.ds(start % width, values.shape[0])] = values


def _sigmoid(x: Array) -> Array:
    """Computes the sigmoid with tanh, a single special-function instruction; the exponential form takes two."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5
