"""The portable implementation: `jax.lax.scan` over time, after one input product for all steps."""

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import cell, input_product, matmul_in


def lstm_scan(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` portably; XLA differentiates it."""
    # A single [T*B, D] x [D, G] matmul runs at near-peak speed; T matmuls of [B, D] would not.
    z_TBG = input_product(jnp.swapaxes(x, 0, 1), weights.w_ih, dtype) + weights.bias[None, None]

    def step(carry: LSTMCarry, z_BG: Array) -> tuple[LSTMCarry, Array]:
        c_BH, h_BH = cell(z_BG + matmul_in(carry.h, weights.w_hh, dtype), carry.c)
        return LSTMCarry(c_BH, h_BH), h_BH.astype(dtype)

    carry, y_TBH = jax.lax.scan(step, carry, z_TBG)
    return jnp.swapaxes(y_TBH, 0, 1), carry
