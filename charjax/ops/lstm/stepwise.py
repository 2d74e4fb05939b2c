"""A stack of layers one step at a time, for generation, where each character has to be known before the next step.

A step is a chain: layer 0's gates, a product, layer 1's gates, a product, and so on to the logits. Each product takes a
layer's h once, for the layer itself in the step to come and for what stands above it: the next layer or the head. So
L products and L passes over gates make a step, and its weights are read once. Layer 0's input is a row of a table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from charjax.ops.lstm.products import gate_table, look_up, matmul
from charjax.ops.lstm.target import target_platform
from charjax.types import Array, LSTMCarry, LSTMWeights

LEAST_ROWS_ON_TPU = 8


class StepWeights(NamedTuple):
    """What a step multiplies with.

    Attributes:
        table: [V + 1, 4H] float32, layer 0's rows with its bias, and a row of NaN.
        own: per layer [H, 4H] in the operands' dtype.
        above: per layer [H, 4H], but [H, V] for the last one, in the operands' dtype.
        bias: per layer what is added above it, [4H], but [V] for the last one, float32.
    """

    table: Array
    own: tuple[Array, ...]
    above: tuple[Array, ...]
    bias: tuple[Array, ...]


class StepState(NamedTuple):
    """Where a batch of sequences stands.

    Attributes:
        carry: the recurrent state per layer.
        own: per layer [B, 4H] float32, what its h adds to its gates in the step to come.
    """

    carry: tuple[LSTMCarry, ...]
    own: tuple[Array, ...]


def make_step_weights(
    layers: Sequence[LSTMWeights], head_kernel: Array, head_bias: Array, dtype: jnp.dtype
) -> StepWeights:
    """Arranges the parameters of L layers and a head ([H, V] and [V], float32) for `step`."""
    rounded = layers[0]._replace(w_ih=layers[0].w_ih.astype(dtype).astype(jnp.float32))
    return StepWeights(
        gate_table(rounded, jnp.dtype("float32")),
        tuple(layer.w_hh.astype(dtype) for layer in layers),
        tuple(kernel.astype(dtype) for kernel in (*(layer.w_ih for layer in layers[1:]), head_kernel)),
        (*(layer.bias for layer in layers[1:]), head_bias),
    )


def start(weights: StepWeights, carry: Sequence[LSTMCarry]) -> StepState:
    """The state before the first step, from the recurrent state ([B, H] float32 per layer)."""
    own = (matmul(layer.h.astype(kernel.dtype), kernel) for layer, kernel in zip(carry, weights.own, strict=True))
    return StepState(tuple(carry), tuple(own))


def step(weights: StepWeights, state: StepState, ids: Array) -> tuple[StepState, Array]:
    """Takes one step: ids [B] integer -> (state, logits [B, V] float32)."""
    from_below, carries, owns = look_up(weights.table, ids), [], []
    for layer, own, own_kernel, above_kernel, bias in zip(
        state.carry, state.own, weights.own, weights.above, weights.bias, strict=True
    ):
        i_BH, f_BH, g_BH, o_BH = jnp.split(own + from_below, 4, axis=-1)
        c_BH = jax.nn.sigmoid(f_BH) * layer.c + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
        h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(c_BH)
        carries.append(LSTMCarry(c_BH, h_BH))
        product = _product(h_BH.astype(own_kernel.dtype), jnp.concatenate([own_kernel, above_kernel], axis=-1))
        owns.append(product[:, : own_kernel.shape[1]])
        from_below = product[:, own_kernel.shape[1] :] + bias[None]
    return StepState(tuple(carries), tuple(owns)), from_below


def _product(h: Array, kernel: Array) -> Array:
    rows = h.shape[0]
    # A TPU's compiler takes a product of a single row out of the matrix units: seven times the cycles, by its figures.
    if target_platform() == "tpu" and rows < LEAST_ROWS_ON_TPU:
        h = jnp.pad(h, ((0, LEAST_ROWS_ON_TPU - rows), (0, 0)))
    return matmul(h, kernel)[:rows]
