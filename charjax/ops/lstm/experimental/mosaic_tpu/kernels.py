"""The two time loops of `recompute` as TPU kernels in Pallas, with one launch each.

The grid runs over time. w_hh is copied to VMEM once and stays there for the whole sequence, as do h and c, while the
pipeline prefetches the inputs of the next steps and writes back the results of the previous ones. Each grid step
processes multiple time steps, to amortize its overhead. Units are padded to a multiple of the register's lane count,
and rows to a multiple of its sublane count.

These kernels have been compiled for TPUs and run in interpret mode on CPUs, but never on a TPU.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.experimental.mosaic_tpu.tiling import LANES, Tiling, pad, pad_gates, pad_weights, tiling
from charjax.ops.lstm.recompute import Factors, Loops, run_layer
from charjax.ops.lstm.target import target_platform
from charjax.ops.lstm.vma import alike, result


def lstm_mosaic_tpu(
    weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype, *, interpret: bool = False
) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` in Pallas for TPUs; with `interpret`, it runs anywhere, but slowly.

    On a TPU, float32 matmul operands are rounded according to `jax.default_matmul_precision`, as always in JAX.

    Raises:
        NotImplementedError: the platform is not a TPU, or w_hh does not fit in VMEM.
    """
    platform = target_platform()
    if platform != "tpu" and not interpret:
        raise NotImplementedError(f"LSTM implementation 'mosaic_tpu' supports only TPUs, not the platform {platform!r}")
    return run_layer(make_loops(interpret), weights, x, carry, dtype)


@functools.cache
def make_loops(interpret: bool) -> Loops:
    """Returns the two kernels, either compiled for a TPU or interpreted."""
    return Loops(functools.partial(_forward, interpret), functools.partial(_backward, interpret))


def _forward(interpret: bool, z_TBG: Array, w_hh: Array, carry: LSTMCarry) -> tuple[Array, Array, LSTMCarry]:
    time, (batch, hidden), dtype = z_TBG.shape[0], carry.h.shape, w_hh.dtype
    cut = tiling(time, batch, hidden, dtype, unit_bytes=(4 + 2) * dtype.itemsize)
    arrays = [pad_gates(z_TBG, cut), pad_weights(w_hh, cut)]
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
    cut = tiling(time, batch, hidden, dtype, unit_bytes=11 * dtype.itemsize)
    arrays = [*(pad(array, cut) for array in (dy_TBH, *factors)), pad_weights(w_hh, cut).T]
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
    """Runs a kernel: (inputs [T, B, *], w; initial carry) -> ([T, B, width * H] per width; final c and h), padded.

    The output blocks of the final carry stay in VMEM across all time steps, so they also hold the carry between steps.
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
    operands = alike([*arrays, *(pad(array, cut) for array in carry)])
    rows = cut.tiles * cut.rows
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((time, rows, width * cut.hidden), arrays[-1].dtype) for width in widths
    ]
    shapes += [((rows, cut.hidden), jnp.float32)] * 2
    return pl.pallas_call(
        body,
        out_shape=[result(operands[0], *shape) for shape in shapes],
        grid=(cut.tiles, cut.blocks),
        in_specs=[*(over_time(array.shape[-1]) for array in arrays[:-1]), of_w, *of_carry],
        out_specs=[*(over_time(width * cut.hidden) for width in widths), *of_carry],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=cut.memory
        ),
        interpret=interpret,
        name="lstm_backward" if reverse else "lstm_forward",
    )(*operands)


def _columns(hidden: int) -> list[tuple[Any, list[Any]]]:
    """Returns groups of units to compute together, as wide as the widest matrix unit, with the columns of each gate."""
    size = 256 if hidden % 256 == 0 else LANES
    starts = range(0, hidden, size)
    return [(pl.ds(n, size), [pl.ds(gate * hidden + n, size) for gate in range(4)]) for n in starts]


def _product(x: Array, w: Array) -> Array:
    return jnp.dot(x, w, preferred_element_type=jnp.float32)


def _sigmoid(x: Array) -> Array:
    """Computes the sigmoid with tanh, for which there is a hardware instruction."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _split(refs: tuple[Any, ...], *sizes: int) -> list[tuple[Any, ...]]:
    ends = list(itertools.accumulate(sizes))
    return [refs[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _unpad_carry(carry: list[Array], batch: int, hidden: int) -> LSTMCarry:
    return LSTMCarry(*(array[:batch, :hidden] for array in carry))
