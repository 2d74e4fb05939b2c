"""What every implementation of the LSTM is held to: sizes, inputs, tolerances, and the gradients of a scalar."""

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import lstm
from helpers.lstm_reference import lstm_float64

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


SIZES = {"odd": (3, 7, 5, 6), "one": (1, 1, 1, 1), "wide": (2, 3, 33, 17)}  # B, T, D, H


# More steps than the native kernel takes in one block; rows and columns that end in the middle of its tiles.
SIZES |= {"long": (3, 150, 5, 20), "tiles": (29, 11, 67, 70)}


# Held to the contract by tests of their own: something stands in the place of the device, or interpreting is slow.
NOT_ON_CPU = {"cudnn", "mosaic_gpu"}


def make_inputs(size, one_hot=False, seed=0, scale=0.5):
    batch, time, inputs, hidden = SIZES[size]
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights = LSTMWeights(
        normal(inputs, 4 * hidden, scale=scale),
        normal(hidden, 4 * hidden, scale=scale),
        normal(4 * hidden, scale=scale),
    )
    x = rng.integers(0, inputs, (batch, time)).astype(np.uint8) if one_hot else normal(batch, time, inputs)
    carry = LSTMCarry(normal(batch, hidden), normal(batch, hidden))
    return jax.tree.map(jnp.asarray, (weights, x, carry))


def reference(weights, x, carry):
    return lstm_float64(*weights, np.asarray(x), *carry)


def relative(actual, expected):
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / max(1.0, np.max(np.abs(expected)))


def gradients(implementation, dtype, weights, x, carry):
    """Of a weighted sum of everything that comes out, with respect to everything that goes in."""
    rng = np.random.default_rng(1)

    def scalar(weights, x, carry):
        outputs = jax.tree.leaves(lstm(weights, x, carry, implementation=implementation, dtype=dtype))
        return sum(jnp.sum(out * rng.standard_normal(out.shape).astype(np.float32)) for out in outputs)

    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    return jax.tree.leaves(jax.jit(jax.grad(scalar, argnums=(0, 2) if one_hot else (0, 1, 2)))(weights, x, carry))
