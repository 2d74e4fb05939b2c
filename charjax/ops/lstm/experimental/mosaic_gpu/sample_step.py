"""A Pallas kernel for Hopper GPUs that samples the next character and computes the gates of layer 0 from it.

XLA cannot fuse the two into one launch, because all gates depend on the character with the highest score. Here, every
thread block finds that character itself and computes the gates of its own units, one unit per thread. Multiple thread
blocks share a sequence, so even a single sequence keeps several multiprocessors busy.

The kernel has been compiled for an H100 and run in interpret mode on a CPU, but never on a GPU; its speed is unknown,
and it is never chosen by default.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry
from charjax.ops.lstm.single_step import StepState, StepWeights

THREADS = 128  # per warpgroup; its loads are multiples of this

# Larger than the bits of any number.
_LARGEST = 2**31 - 1


def summands(batch: int) -> int:
    """Returns the number of summands to split a step's matmuls into.

    Otherwise, XLA would split some matmuls itself, to keep more multiprocessors busy, and add the summands in another
    launch. It leaves alone matmuls that are already split and those with a single row, which do not use tensor cores.
    """
    return 1 if batch == 1 else 2


def choose(
    weights: StepWeights,
    state: StepState,
    noise: Array,
    number: Array,
    temperature: Array,
    interpret: Any = None,
) -> tuple[Array, LSTMCarry, Array]:
    """Samples like `charjax.generation.sampling.sample` without filters, then runs `single_step.first_layer`.

    Noise and products are passed whole, since slicing them would take another launch.

    Args:
        weights: padded by `pad_weights`, with a vocabulary of V characters padded to W.
        state: the state of B sequences, padded by `pad_carry`.
        noise: [T, B, W] float32, standard Gumbel noise for T characters.
        number: [] int32, an element of `numbers(T)`, which selects the character to sample.
        temperature: [B] float32.
        interpret: Pallas's parameters for interpreting the kernel on any platform, or None to compile it.

    Returns:
        ids [B] int32, the carry of layer 0 after reading them, and its h rounded to the operand dtype, which XLA would
        otherwise do in another launch.
    """
    # Imported on first use, because importing takes 0.17 s and CPUs do not need it.
    from jax.experimental.pallas import mosaic_gpu as plgpu

    batch, hidden = state.carry[0].c.shape
    ids = jax.ShapeDtypeStruct((batch,), jnp.int32)
    c, operand = (jax.ShapeDtypeStruct((batch, hidden), dtype) for dtype in (jnp.float32, weights.kernels[0].dtype))
    kernel = plgpu.kernel(
        sample_step,
        out_type=(ids, c, c, operand),
        # Only the last axis may exceed 65535 in CUDA.
        grid=(hidden // THREADS, batch),
        grid_names=("tile", "sequence"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )
    ids_B, c_BH, h_BH, operand_BH = kernel(
        state.products[-1],
        weights.bias[-1],
        noise,
        number[None],
        temperature,
        state.products[0],
        weights.table,
        state.carry[0].c,
    )
    return ids_B, LSTMCarry(c_BH, h_BH), operand_BH


def sample_step(
    top: Any,
    bias: Any,
    noise: Any,
    number: Any,
    temperature: Any,
    bottom: Any,
    table: Any,
    c_before: Any,
    ids: Any,
    c_after: Any,
    h_after: Any,
    operand: Any,
) -> None:
    """Samples the character of one sequence and computes the gates of one unit per thread; this is the kernel."""
    from jax.experimental import pallas as pl

    row, tile = jax.lax.axis_index("sequence"), jax.lax.axis_index("tile")
    hidden = c_before.shape[1]
    units = pl.ds(tile * THREADS, THREADS)
    gates = [pl.ds(gate * hidden + tile * THREADS, THREADS) for gate in range(4)]
    # These loads are issued first, so that they complete while the character is being sampled.
    own = [_sum_of(bottom, row, gate) for gate in gates]
    c = c_before[row, units]
    logits = _sum_of(top, row, pl.ds(4 * hidden, bias.shape[0])) + bias[...]
    chosen = _argmax(logits + temperature[row] * noise[number[0] - 1, row], table.shape[0] - 1)

    @pl.when(tile == 0)
    def store_id() -> None:
        ids[row] = chosen

    i, f, g, o = (part + table[chosen, gate] for part, gate in zip(own, gates, strict=True))
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    c_after[row, units] = c
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    h_after[row, units] = h
    operand[row, units] = h.astype(operand.dtype)


def _sum_of(product: Any, row: Array, columns: Any) -> Array:
    """Returns some columns of one sequence's row, summed over the summands."""
    total = product[0, row, columns]
    for summand in range(1, product.shape[0]):
        total += product[summand, row, columns]
    return total


def _argmax(scores: Array, size: int) -> Array:
    """Returns the index of the first maximum among the first `size` scores; NaN counts as larger than any number.

    Compared as integers, float bits sort like the numbers once those of negative numbers are inverted.
    """
    # Adding zero turns -0 into 0, whose bits differ.
    bits = jax.lax.bitcast_convert_type(scores + 0.0, jnp.int32)
    ranks = jnp.where(bits < 0, bits ^ jnp.int32(_LARGEST), bits)
    ranks = jnp.where(scores == scores, ranks, jnp.int32(_LARGEST))  # noqa: PLR0124
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    ranks = jnp.where(places < size, ranks, jnp.int32(-_LARGEST - 1))
    return jnp.min(jnp.where(ranks == jnp.max(ranks), places, jnp.int32(size)))


def numbers(size: int) -> np.ndarray:
    """Returns the `number` argument of `choose` for each character, one-based, [size] int32.

    XLA would recognize a zero-based iota and compute each number in a separate launch.
    """
    return np.arange(1, size + 1, dtype=np.int32)


def pad_weights(weights: StepWeights) -> StepWeights:
    """Pads the weights with zero-weight units, whose state stays 0, and with characters that are never sampled."""
    gates = weights.table.shape[1]
    own = [_pad_gates(kernel[:, :gates]) for kernel in weights.kernels]
    above = [kernel[:, gates:] for kernel in weights.kernels]
    above = [*map(_pad_gates, above[:-1]), _pad(above[-1], 1)]
    return StepWeights(
        _pad_gates(weights.table),
        tuple(_pad(jnp.concatenate(pair, axis=-1), 0) for pair in zip(own, above, strict=True)),
        (*map(_pad_gates, weights.bias[:-1]), _pad(weights.bias[-1], 0)),
    )


def pad_carry(carry: tuple[LSTMCarry, ...]) -> tuple[LSTMCarry, ...]:
    """Pads the state with the units that `pad_weights` adds."""
    return jax.tree.map(lambda state_BH: _pad(state_BH, 1), carry)


def cut_carry(carry: tuple[LSTMCarry, ...], hidden: int) -> tuple[LSTMCarry, ...]:
    """Undoes `pad_carry`."""
    return jax.tree.map(lambda state_BH: state_BH[:, :hidden], carry)


def pad_noise(noise: Array) -> Array:
    """Pads noise [T, B, V] -> [T, B, W]."""
    return _pad(noise, 2)


def _pad_gates(array: Array) -> Array:
    """Pads the units of each gate in [..., 4H]."""
    by_gate = array.reshape(*array.shape[:-1], 4, array.shape[-1] // 4)
    return _pad(by_gate, by_gate.ndim - 1).reshape(*array.shape[:-1], -1)


def _pad(array: Array, axis: int) -> Array:
    """Pads an axis with zeros to a multiple of THREADS."""
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, -array.shape[axis] % THREADS)
    return jnp.pad(array, missing)
