"""A kernel for GPUs, written in Pallas for Mosaic: it chooses the next character and makes layer 0's gates from it.

XLA cannot put these two into one launch, since all gates wait for the largest of the scores. Here each thread block
finds it for itself and goes on with its share of the units. A thread block has one text and as many units as it has
threads, so that one text alone still keeps several multiprocessors busy.

The kernel has been compiled for an H100 and interpreted on a processor, but never run on a GPU: nothing is known about
its speed, and no default chooses it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry
from charjax.ops.lstm.single_step import StepState, StepWeights

THREADS = 128  # of a warpgroup: what it loads from memory is a multiple of it

# Larger than the bits of every number.
_LARGEST = 2**31 - 1


def summands(batch: int) -> int:
    """How many to make of the products of a step.

    XLA itself would split up some products, to keep more multiprocessors busy, and add the summands up in another
    launch. It does not do so again with what is split up already, nor with one row, which tensor cores do not multiply.
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
    """What `charjax.generation.sampling.sample` without a filter and then `single_step.first_layer` compute.

    What would have to be cut out first, in another launch, it takes as a whole: noise and products.

    Args:
        weights: padded by `pad_weights`, with a vocabulary of V characters padded to W.
        state: of B texts, padded by `pad_carry`.
        noise: [T, B, W] float32, drawn from the standard Gumbel distribution, for several characters.
        number: [] int32, one of `numbers(T)`: which of them is to be chosen.
        temperature: [B] float32.
        interpret: Pallas's parameters for interpreting the kernel on any platform, for tests; None compiles it.

    Returns:
        ids [B] int32, layer 0's carry after them, and its h in the operands' dtype, which XLA would otherwise round
        in another launch.
    """
    # Imported when it is used: it takes a sixth of a second, and whoever runs on a processor has no use for it.
    from jax.experimental.pallas import mosaic_gpu as plgpu

    batch, hidden = state.carry[0].c.shape
    ids = jax.ShapeDtypeStruct((batch,), jnp.int32)
    c, operand = (jax.ShapeDtypeStruct((batch, hidden), dtype) for dtype in (jnp.float32, weights.kernels[0].dtype))
    kernel = plgpu.kernel(
        sample_step,
        out_type=(ids, c, c, operand),
        # The last axis is the one that CUDA lets grow beyond 65535.
        grid=(hidden // THREADS, batch),
        grid_names=("tile", "text"),
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
    """The kernel: one text's character, and the gates of as many units as there are threads."""
    from jax.experimental import pallas as pl

    text, tile = jax.lax.axis_index("text"), jax.lax.axis_index("tile")
    hidden = c_before.shape[1]
    units = pl.ds(tile * THREADS, THREADS)
    gates = [pl.ds(gate * hidden + tile * THREADS, THREADS) for gate in range(4)]
    # Asked for first, these arrive while the character is being chosen.
    own = [_sum_of(bottom, text, gate) for gate in gates]
    c = c_before[text, units]
    logits = _sum_of(top, text, pl.ds(4 * hidden, bias.shape[0])) + bias[...]
    chosen = _first_largest(logits + temperature[text] * noise[number[0] - 1, text], table.shape[0] - 1)

    @pl.when(tile == 0)
    def tell() -> None:
        ids[text] = chosen

    i, f, g, o = (part + table[chosen, gate] for part, gate in zip(own, gates, strict=True))
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    c_after[text, units] = c
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    h_after[text, units] = h
    operand[text, units] = h.astype(operand.dtype)


def _sum_of(product: Any, text: Array, columns: Any) -> Array:
    """A piece of one text's row of what comes as summands."""
    total = product[0, text, columns]
    for number in range(1, product.shape[0]):
        total += product[number, text, columns]
    return total


def _first_largest(scores: Array, size: int) -> Array:
    """The place of the largest among the first `size` scores, the first of equals; a NaN is larger than all.

    As integers, numbers are in the order of their bits, those of negative ones turned round.
    """
    # Adding zero makes 0 of -0, whose bits differ.
    bits = jax.lax.bitcast_convert_type(scores + 0.0, jnp.int32)
    ranks = jnp.where(bits < 0, bits ^ jnp.int32(_LARGEST), bits)
    ranks = jnp.where(scores == scores, ranks, jnp.int32(_LARGEST))  # noqa: PLR0124
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    ranks = jnp.where(places < size, ranks, jnp.int32(-_LARGEST - 1))
    return jnp.min(jnp.where(ranks == jnp.max(ranks), places, jnp.int32(size)))


def numbers(size: int) -> np.ndarray:
    """[size] int32, what `choose` is given for one character after the other: they count from 1.

    Counting from 0, XLA would see an iota, and make each number in a launch of its own.
    """
    return np.arange(1, size + 1, dtype=np.int32)


def pad_weights(weights: StepWeights) -> StepWeights:
    """Adds units without weights, whose state stays 0, and characters that are never chosen."""
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
    """The state of the units that `pad_weights` adds as well."""
    return jax.tree.map(lambda state_BH: _pad(state_BH, 1), carry)


def cut_carry(carry: tuple[LSTMCarry, ...], hidden: int) -> tuple[LSTMCarry, ...]:
    """Undoes `pad_carry`."""
    return jax.tree.map(lambda state_BH: state_BH[:, :hidden], carry)


def pad_noise(noise: Array) -> Array:
    """[T, B, V] -> [T, B, W]."""
    return _pad(noise, 2)


def _pad_gates(array: Array) -> Array:
    """[..., 4H], each gate's units."""
    by_gate = array.reshape(*array.shape[:-1], 4, array.shape[-1] // 4)
    return _pad(by_gate, by_gate.ndim - 1).reshape(*array.shape[:-1], -1)


def _pad(array: Array, axis: int) -> Array:
    """Zeros, up to a multiple of what a warpgroup takes."""
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, -array.shape[axis] % THREADS)
    return jnp.pad(array, missing)
