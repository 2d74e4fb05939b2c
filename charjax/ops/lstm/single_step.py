"""Single steps of a stack of LSTM layers, for generation, where each character must be known before the next step.

A step is a chain: the gates of layer 0, a matmul, the gates of layer 1, a matmul, and so on up to the logits. Each
matmul reads a layer's h once, both for the layer's own gates in the next step and for whatever is above it (the next
layer or the head). A step thus takes L matmuls and L passes over gates, and reads its weights once. The input of layer
0 is looked up in a table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import cell, gate_table, look_up, matmul
from charjax.ops.lstm.target import target_platform

LEAST_ROWS_ON_TPU = 8


class StepWeights(NamedTuple):
    """The weights of a step.

    Attributes:
        table: [V + 1, 4H] float32, the input rows of layer 0 plus its bias, then a row of NaN.
        kernels: per layer, [H, 4H + N] in the operand dtype: the columns for the layer's own gates, then those for the
            N units above it, which are the 4H gates of the next layer or, above the last layer, the V characters.
        bias: per layer, the bias of what is above it, float32: [4H], or [V] above the last layer.
    """

    table: Array
    kernels: tuple[Array, ...]
    bias: tuple[Array, ...]


class StepState(NamedTuple):
    """The state of a batch of sequences between steps.

    Attributes:
        carry: the recurrent state per layer, [B, H] float32.
        products: per layer, [S, B, 4H + N] float32: h times the layer's kernel, as S summands. It feeds the layer's own
            4H gates in the next step and the N units above it (for the last layer, the logits).
    """

    carry: tuple[LSTMCarry, ...]
    products: tuple[Array, ...]


def pack(layers: Sequence[LSTMWeights], head_kernel: Array, head_bias: Array, dtype: jnp.dtype) -> StepWeights:
    """Packs the parameters of L layers and a head ([H, V] and [V], float32) for `step`."""
    rounded = layers[0]._replace(w_ih=layers[0].w_ih.astype(dtype).astype(jnp.float32))
    above = [*(layer.w_ih for layer in layers[1:]), head_kernel]
    return StepWeights(
        gate_table(rounded, jnp.dtype("float32")),
        tuple(
            jnp.concatenate([layer.w_hh, kernel], axis=-1).astype(dtype)
            for layer, kernel in zip(layers, above, strict=True)
        ),
        (*(layer.bias for layer in layers[1:]), head_bias),
    )


def start(weights: StepWeights, carry: Sequence[LSTMCarry], *, summands: int = 1) -> StepState:
    """Returns the state for a given carry ([B, H] float32 per layer), with products split into `summands` summands."""
    products = (_product(weights, n, _operand(weights, layer.h), summands) for n, layer in enumerate(carry))
    return StepState(tuple(carry), tuple(products))


def logits(weights: StepWeights, state: StepState) -> Array:
    """Returns the logits for the next character, [B, V] float32."""
    return _to_above(weights, -1, state.products[-1])


def step(weights: StepWeights, state: StepState, ids: Array) -> StepState:
    """Reads one character per sequence, ids [B] integer."""
    return step_above(weights, state, first_layer(weights, state, ids))


def first_layer(weights: StepWeights, state: StepState, ids: Array) -> LSTMCarry:
    """Computes the carry of layer 0 after a step: ids [B] integer -> [B, H] float32."""
    return LSTMCarry(*cell(_to_own(weights, state.products[0]) + look_up(weights.table, ids), state.carry[0].c))


def step_above(weights: StepWeights, state: StepState, first: LSTMCarry, operand: Array | None = None) -> StepState:
    """Completes a step, given the result of its first layer.

    Args:
        weights: from `pack`.
        state: the state before the step.
        first: the carry of layer 0 after the step.
        operand: [B, H], the h of layer 0 in the operand dtype, if a kernel has already rounded it.
    """
    operand = _operand(weights, first.h) if operand is None else operand
    carries, products = [first], [_product(weights, 0, operand, len(state.products[0]))]
    for n in range(1, len(state.carry)):
        z_BG = _to_own(weights, state.products[n]) + _to_above(weights, n - 1, products[-1])
        carries.append(LSTMCarry(*cell(z_BG, state.carry[n].c)))
        products.append(_product(weights, n, _operand(weights, carries[-1].h), len(state.products[n])))
    return StepState(tuple(carries), tuple(products))


def take(state: StepState, rows: Array) -> StepState:
    """Returns the state of the given sequences of a batch, `rows` [N] integer."""
    return jax.tree.map(lambda values: values[..., rows, :], state)


def where(condition_B: Array, state: StepState, otherwise: StepState) -> StepState:
    """Selects between two states for each sequence, like `jnp.where`."""

    def select(one: Array, other: Array) -> Array:
        return jnp.where(condition_B[:, None] if one.ndim == 2 else condition_B[None, :, None], one, other)

    return jax.tree.map(select, state, otherwise)


def _to_own(weights: StepWeights, product: Array) -> Array:
    return sum(product[1:], product[0])[:, : weights.table.shape[1]]


def _to_above(weights: StepWeights, layer: int, product: Array) -> Array:
    return sum(product[1:], product[0])[:, weights.table.shape[1] :] + weights.bias[layer][None]


def _operand(weights: StepWeights, h: Array) -> Array:
    return h.astype(weights.kernels[0].dtype)


def _product(weights: StepWeights, layer: int, operand: Array, summands: int) -> Array:
    """Multiplies a layer's h [B, H], in the operand dtype, by its kernel -> [S, B, 4H + N] float32."""
    kernel, rows = weights.kernels[layer], operand.shape[0]
    if summands > 1:
        parts = operand.reshape(rows, summands, -1).transpose(1, 0, 2)
        return matmul(parts, kernel.reshape(summands, -1, kernel.shape[1]))
    # For a single row, the TPU compiler does not use the matrix units, and by its own estimate a step takes five times
    # as long. In an exported program, the number of rows may be unknown.
    if target_platform() == "tpu" and isinstance(rows, int) and rows < LEAST_ROWS_ON_TPU:
        operand = jnp.pad(operand, ((0, LEAST_ROWS_ON_TPU - rows), (0, 0)))
    return matmul(operand, kernel)[None, :rows]
