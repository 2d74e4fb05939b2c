"""Kernels for TPUs, written in Pallas: the two loops over time of `recompute`, each of them one launch.

Time is the grid. w_hh is copied to the core's memory once and stays there for the whole sequence, as do h and c, while
the pipeline brings the next steps' inputs and takes the last steps' results away. A turn of the grid takes several
steps, since each has a price of its own. Units are padded to the lanes of a register, rows to its sublanes.

These kernels were compiled for TPUs and interpreted on processors; they never ran on a TPU.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from charjax.ops.lstm.recompute import Factors, Loops, run_layer
from charjax.ops.lstm.target import target_platform
from charjax.types import Array, LSTMCarry, LSTMWeights

LANES = 128
# Rows of a batch tile: enough to hide the loading of weights into the matrix units; fewer where H is large, since the
# program grows with both.
MOST_ROWS = 128
MOST_ROWS_TIMES_UNITS = MOST_ROWS * 1024
MOST_STEPS = 8
# What the blocks that come and go may take, and what a core's memory may hold in all.
BLOCK_BYTES = 8 * 2**20
MEMORY_BYTES = 100 * 2**20


class Tiling(NamedTuple):
    """How a layer is cut: the batch into `tiles` of `rows`, time into `blocks` of `steps`.

    Attributes:
        tiles, rows: tiles x rows >= B, padded.
        hidden: H, padded to a multiple of LANES.
        blocks, steps: blocks x steps >= T; the last block ends where time does.
        memory: bytes of the core's memory to ask for.
    """

    tiles: int
    rows: int
    hidden: int
    blocks: int
    steps: int
    memory: int


def lstm_mosaic_tpu(
    weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype, *, interpret: bool = False
) -> tuple[Array, LSTMCarry]:
    """The implementation of `charjax.ops.lstm` in Pallas for TPUs; interpreted, it is slow and runs anywhere.

    Raises:
        NotImplementedError: what is compiled for is not a TPU, or w_hh is too large for a core's memory.
    """
    platform = target_platform()
    if platform != "tpu" and not interpret:
        raise NotImplementedError(f"LSTM implementation 'mosaic_tpu' is for TPUs, not for platform {platform!r}")
    return run_layer(make_loops(interpret), weights, x, carry, dtype)


@functools.cache
def make_loops(interpret: bool) -> Loops:
    """The two kernels, compiled for a TPU or interpreted."""
    return Loops(functools.partial(_forward, interpret), functools.partial(_backward, interpret))


def tiling(time: int, batch: int, hidden: int, dtype: jnp.dtype, unit_bytes: int) -> Tiling:
    """Cuts a layer whose blocks take so many bytes per step, row and unit; sizes are at least 1."""
    padded = _up(hidden, LANES)
    sublanes = 8 * 4 // dtype.itemsize
    tiles = pl.cdiv(batch, max(sublanes, min(MOST_ROWS, MOST_ROWS_TIMES_UNITS // padded)))
    rows = _up(pl.cdiv(batch, tiles), sublanes)
    # The pipeline holds two of each block: one at work, one on its way.
    step_bytes = 2 * rows * padded * unit_bytes
    blocks = pl.cdiv(time, max(1, min(MOST_STEPS, BLOCK_BYTES // step_bytes)))
    steps = pl.cdiv(time, blocks)
    # The weights, the blocks, the carry before and after (two of each as well), and room for what does not fit in
    # registers.
    memory = 4 * padded**2 * dtype.itemsize + steps * step_bytes + 16 * rows * padded * 4 + 2**22
    if memory > MEMORY_BYTES:
        raise NotImplementedError(
            f"LSTM implementation 'mosaic_tpu' keeps w_hh in a core's memory: {hidden} units in {dtype.name} are too many"
        )
    return Tiling(tiles, rows, padded, blocks, steps, memory)


def _forward(interpret: bool, z_TBG: Array, w_hh: Array, carry: LSTMCarry) -> tuple[Array, Array, LSTMCarry]:
    time, (batch, hidden), dtype = z_TBG.shape[0], carry.h.shape, w_hh.dtype
    if time * batch == 0:
        nothing = jnp.zeros((time, batch, hidden), dtype)
        return nothing, nothing, carry
    cut = tiling(time, batch, hidden, dtype, unit_bytes=4 * 4 + 2 * dtype.itemsize)
    arrays = [_pad_gates(z_TBG, cut), _pad_weights(w_hh, cut)]
    h, c, *after = _launch(_forward_step, cut, time, arrays, carry, (1, 1), reverse=False, interpret=interpret)
    return h[:, :batch, :hidden], c[:, :batch, :hidden], _unpad_carry(after, batch, hidden)


def _forward_step(t: Any, carry: LSTMCarry, z_ref: Any, w_ref: Any, h_ref: Any, c_ref: Any) -> None:
    operand = carry.h[...].astype(w_ref.dtype)
    for units, gates in _columns(h_ref.shape[-1]):
        i, f, g, o = (z_ref[t, :, gate] + _product(operand, w_ref[:, gate]) for gate in gates)
        c = _sigmoid(f) * carry.c[:, units] + _sigmoid(i) * jnp.tanh(g)
        h = _sigmoid(o) * jnp.tanh(c)
        carry.c[:, units], carry.h[:, units] = c, h
        c_ref[t, :, units], h_ref[t, :, units] = c.astype(c_ref.dtype), h.astype(h_ref.dtype)


def _backward(
    interpret: bool, dy_TBH: Array, factors: Factors, w_hh: Array, last: LSTMCarry
) -> tuple[Array, LSTMCarry]:
    (time, batch, hidden), dtype = dy_TBH.shape, w_hh.dtype
    if time * batch == 0:
        return jnp.zeros((time, batch, 4 * hidden), dtype), last
    cut = tiling(time, batch, hidden, dtype, unit_bytes=11 * dtype.itemsize)
    arrays = [*(_pad(array, cut) for array in (dy_TBH, *factors)), _pad_weights(w_hh, cut).T]
    dz, *before = _launch(_backward_step, cut, time, arrays, last, (4,), reverse=True, interpret=interpret)
    dz = dz.reshape(time, -1, 4, cut.hidden)[:, :batch, :, :hidden].reshape(time, batch, 4 * hidden)
    return dz, _unpad_carry(before, batch, hidden)


def _backward_step(
    t: Any,
    carry: LSTMCarry,
    dy_ref: Any,
    of_c: Any,
    of_i: Any,
    of_f: Any,
    of_g: Any,
    of_o: Any,
    f: Any,
    w_ref: Any,
    dz_ref: Any,
) -> None:
    for units, gates in _columns(dy_ref.shape[-1]):
        dh = carry.h[:, units] + dy_ref[t, :, units]
        dc = carry.c[:, units] + dh * of_c[t, :, units]
        of_dz = (dc * of_i[t, :, units], dc * of_f[t, :, units], dc * of_g[t, :, units], dh * of_o[t, :, units])
        for gate, dz in zip(gates, of_dz, strict=True):
            dz_ref[t, :, gate] = dz.astype(dz_ref.dtype)
        carry.c[:, units] = dc * f[t, :, units]
    for units, _ in _columns(dy_ref.shape[-1]):
        carry.h[:, units] = _product(dz_ref[t], w_ref[:, units])


def _launch(
    step: Callable[..., None],
    cut: Tiling,
    time: int,
    arrays: list[Array],
    carry: LSTMCarry,
    widths: tuple[int, ...],
    *,
    reverse: bool,
    interpret: bool,
) -> list[Array]:
    """Inputs [T, B, *] and then w, the carry before -> [T, B, width * H] for each width, c and h after; all padded.

    The blocks of the results that take the carry after stay in place while time passes: they hold the carry.
    """

    def block_at(turn: Any) -> Any:
        return cut.blocks - 1 - turn if reverse else turn

    def body(*refs: Any) -> None:
        inputs, before, results, after = _split(refs, len(arrays), 2, len(widths), 2)
        turn = pl.program_id(1)

        @pl.when(turn == 0)
        def _() -> None:
            for ref, of in zip(after, before, strict=True):
                ref[...] = of[...]

        steps = jnp.minimum(cut.steps, time - cut.steps * block_at(turn))

        def one(n: Any, _: None) -> None:
            step(steps - 1 - n if reverse else n, LSTMCarry(*after), *inputs, *results)

        jax.lax.fori_loop(0, steps, one, None)

    def over_time(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((cut.steps, cut.rows, width), lambda tile, turn: (block_at(turn), tile, 0))

    of_carry = [pl.BlockSpec((cut.rows, cut.hidden), lambda tile, turn: (tile, 0))] * 2
    of_w = pl.BlockSpec(arrays[-1].shape, lambda tile, turn: (0, 0), pipeline_mode=pl.Buffered(1))
    operands = _alike([*arrays, *(_pad(array, cut) for array in carry)])
    rows = cut.tiles * cut.rows
    shapes = [((time, rows, width * cut.hidden), arrays[-1].dtype) for width in widths]
    shapes += [((rows, cut.hidden), jnp.float32)] * 2
    return pl.pallas_call(
        body,
        out_shape=[_result(operands[0], *shape) for shape in shapes],
        grid=(cut.tiles, cut.blocks),
        in_specs=[*(over_time(array.shape[-1]) for array in arrays[:-1]), of_w, *of_carry],
        out_specs=[*(over_time(width * cut.hidden) for width in widths), *of_carry],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=cut.memory
        ),
        interpret=interpret,
        name="lstm_backward" if reverse else "lstm_forward",
    )(*operands)


def _columns(hidden: int) -> list[tuple[slice, list[slice]]]:
    """Groups of units whose gates are made together, and the columns of their four gates."""
    size = 256 if hidden % 256 == 0 else LANES
    starts = range(0, hidden, size)
    return [(pl.ds(n, size), [pl.ds(gate * hidden + n, size) for gate in range(4)]) for n in starts]


def _product(x: Array, w: Array) -> Array:
    return jnp.dot(x, w, preferred_element_type=jnp.float32)


def _sigmoid(x: Array) -> Array:
    """By way of tanh, for which there is hardware."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _split(refs: tuple[Any, ...], *sizes: int) -> list[tuple[Any, ...]]:
    ends = list(itertools.accumulate(sizes))
    return [refs[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def _pad(array: Array, cut: Tiling) -> Array:
    """[..., B, H] -> padded with zeros, which stay zero: such a unit's c and h are, and so are their cotangents."""
    missing = (cut.tiles * cut.rows - array.shape[-2], cut.hidden - array.shape[-1])
    return jnp.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, n) for n in missing])


def _pad_gates(array: Array, cut: Tiling) -> Array:
    """[T, B, 4H] -> each gate's units padded, and the rows."""
    time, batch, gates = array.shape
    apart = array.reshape(time, batch, 4, gates // 4)
    missing = ((0, 0), (0, cut.tiles * cut.rows - batch), (0, 0), (0, cut.hidden - gates // 4))
    return jnp.pad(apart, missing).reshape(time, cut.tiles * cut.rows, 4 * cut.hidden)


def _pad_weights(w_hh: Array, cut: Tiling) -> Array:
    """[H, 4H] -> padded."""
    hidden = w_hh.shape[0]
    missing = cut.hidden - hidden
    apart = w_hh.reshape(hidden, 4, hidden)
    return jnp.pad(apart, ((0, missing), (0, 0), (0, missing))).reshape(cut.hidden, 4 * cut.hidden)


def _unpad_carry(carry: list[Array], batch: int, hidden: int) -> LSTMCarry:
    return LSTMCarry(*(array[:batch, :hidden] for array in carry))


def _alike(arrays: list[Array]) -> list[Array]:
    """Under shard_map, makes all arrays vary over the devices that one of them varies over."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    wanted = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(wanted - axes), to="varying") if wanted - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    ]


def _result(like: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    axes = jax.typeof(like).manual_axis_type
    # What varies over the devices of a shard_map has to name its mesh as well.
    placed = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec()) if axes.varying else None
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed, manual_axis_type=axes)
