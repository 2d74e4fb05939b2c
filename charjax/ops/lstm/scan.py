"""The portable implementation: `jax.lax.scan` over time, with the input product of all steps made before it."""

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import input_product, product


def lstm_scan(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """The portable implementation of `charjax.ops.lstm`."""
    # One [T*B, D] x [D, G] product runs near the machine's peak; T products of [B, D] would not.
    z_TBG = input_product(jnp.swapaxes(x, 0, 1), weights.w_ih, dtype) + weights.bias[None, None]

    def step(carry: LSTMCarry, z_BG: Array) -> tuple[LSTMCarry, Array]:
        z_BG = z_BG + product(carry.h, weights.w_hh, dtype)
        i_BH, f_BH, g_BH, o_BH = jnp.split(z_BG, 4, axis=-1)
        c_BH = jax.nn.sigmoid(f_BH) * carry.c + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
        h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(c_BH)
        return LSTMCarry(c_BH, h_BH), h_BH.astype(dtype)

    carry, y_TBH = jax.lax.scan(step, carry, z_TBG)
    return jnp.swapaxes(y_TBH, 0, 1), carry
