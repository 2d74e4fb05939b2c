"""A stack of layers one step at a time, for generation, where each character has to be known before the next step.

A step is a chain: layer 0's gates, a product, layer 1's gates, a product, and so on to the logits. Each product takes a
layer's h once, for the layer itself in the step to come and for what stands above it: the next layer or the head. So
L products and L passes over gates make a step, and its weights are read once. Layer 0's input is a row of a table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import cell, gate_table, look_up, matmul
from charjax.ops.lstm.target import target_platform

LEAST_ROWS_ON_TPU = 8


class StepWeights(NamedTuple):
    """What a step multiplies with.

    Attributes:
        table: [V + 1, 4H] float32, layer 0's rows with its bias, and a row of NaN.
        kernels: per layer [H, 4H + N] in the operands' dtype, for the layer's own gates and the N units above it, which
            are the next layer's 4H gates or, above the last, the V characters.
        bias: per layer what is added above it, [4H], but [V] for the last one, float32.
    """

    table: Array
    kernels: tuple[Array, ...]
    bias: tuple[Array, ...]


class StepState(NamedTuple):
    """Where a batch of sequences stands.

    Attributes:
        carry: the recurrent state per layer.
        products: per layer [S, B, 4H + N] float32, S summands of what its h gives to its own 4H gates in the step to
            come and to the N units above it, which for the last layer are the logits.
    """

    carry: tuple[LSTMCarry, ...]
    products: tuple[Array, ...]


def make_step_weights(
    layers: Sequence[LSTMWeights], head_kernel: Array, head_bias: Array, dtype: jnp.dtype
) -> StepWeights:
    """Arranges the parameters of L layers and a head ([H, V] and [V], float32) for `step`."""
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
    """The state before the first step, from the recurrent state ([B, H] float32 per layer); `summands` is S."""
    products = (_product(weights, n, _operand(weights, layer.h), summands) for n, layer in enumerate(carry))
    return StepState(tuple(carry), tuple(products))


def logits(weights: StepWeights, state: StepState) -> Array:
    """What the state says of the character to come, [B, V] float32."""
    return _to_above(weights, -1, state.products[-1])


def first_layer(weights: StepWeights, state: StepState, ids: Array) -> LSTMCarry:
    """Layer 0 after one more step: ids [B] integer -> [B, H] float32."""
    return LSTMCarry(*cell(_to_own(weights, state.products[0]) + look_up(weights.table, ids), state.carry[0].c))


def step(weights: StepWeights, state: StepState, first: LSTMCarry, operand: Array | None = None) -> StepState:
    """Takes one step.

    Args:
        weights: what it multiplies with.
        state: before the step.
        first: layer 0 after it, from `first_layer` or from a kernel that does the same.
        operand: [B, H], layer 0's h in the operands' dtype, where a kernel has rounded it already.
    """
    operand = _operand(weights, first.h) if operand is None else operand
    carries, products = [first], [_product(weights, 0, operand, len(state.products[0]))]
    for n in range(1, len(state.carry)):
        z_BG = _to_own(weights, state.products[n]) + _to_above(weights, n - 1, products[-1])
        carries.append(LSTMCarry(*cell(z_BG, state.carry[n].c)))
        products.append(_product(weights, n, _operand(weights, carries[-1].h), len(state.products[n])))
    return StepState(tuple(carries), tuple(products))


def _to_own(weights: StepWeights, product: Array) -> Array:
    return sum(product[1:], product[0])[:, : weights.table.shape[1]]


def _to_above(weights: StepWeights, layer: int, product: Array) -> Array:
    return sum(product[1:], product[0])[:, weights.table.shape[1] :] + weights.bias[layer][None]


def _operand(weights: StepWeights, h: Array) -> Array:
    return h.astype(weights.kernels[0].dtype)


def _product(weights: StepWeights, layer: int, operand: Array, summands: int) -> Array:
    """A layer's [S, B, 4H + N], from its h [B, H] in the operands' dtype."""
    kernel, rows = weights.kernels[layer], operand.shape[0]
    if summands > 1:
        parts = operand.reshape(rows, summands, -1).transpose(1, 0, 2)
        return matmul(parts, kernel.reshape(summands, -1, kernel.shape[1]))
    # A TPU's compiler takes a product of a single row out of the matrix units: five times a step's cycles, it says.
    if target_platform() == "tpu" and rows < LEAST_ROWS_ON_TPU:
        operand = jnp.pad(operand, ((0, LEAST_ROWS_ON_TPU - rows), (0, 0)))
    return matmul(operand, kernel)[None, :rows]
