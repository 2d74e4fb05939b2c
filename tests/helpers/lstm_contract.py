"""The contract of every implementation of the LSTM: its numbers are those of NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import EXPERIMENTAL, lstm
from helpers.lstm_reference import lstm_float64, lstm_gradients_float64

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}

SIZES = {
    "odd": (3, 7, 5, 6),  # B, T, D, H
    "one": (1, 1, 1, 1),
    "wide": (2, 3, 33, 17),
    # More steps than the native kernel takes in a block; rows and columns that end in the middle of its tiles.
    "long": (3, 150, 5, 20),
    "tiles": (29, 11, 67, 70),
}
NOT_ON_CPU = {*EXPERIMENTAL}

# Small weights, where errors would otherwise grow over long sequences and wide sums.
SCALE = {"long": 0.1, "tiles": 0.1}


def make_inputs(size="odd", one_hot=False, scale=0.5):
    """Weights, x and carry; `size` is one of SIZES or (B, T, D, H)."""
    batch, time, inputs, hidden = SIZES.get(size, size)
    scale = SCALE.get(size, scale)
    rng = np.random.default_rng(0)

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


def relative(actual, expected):
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / max(1.0, np.max(np.abs(expected)))


@functools.cache
def compiled(implementation, dtype="float32"):
    """One compiled function for all tests of an implementation."""
    return jax.jit(functools.partial(lstm, implementation=implementation, dtype=dtype))


def gradients(implementation, dtype, weights, x, carry):
    """Outputs (y, c, h), the cotangents that weigh them, and the gradients of the sum, all as lists."""
    shapes = jax.eval_shape(functools.partial(lstm, implementation="scan", dtype=dtype), weights, x, carry)
    rng = np.random.default_rng(1)
    cotangents = [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in jax.tree.leaves(shapes)]

    def scalar(weights, x, carry):
        outputs = jax.tree.leaves(lstm(weights, x, carry, implementation=implementation, dtype=dtype))
        return sum(jnp.sum(a * b) for a, b in zip(outputs, cotangents, strict=True)), outputs

    argnums = (0, 2) if jnp.issubdtype(x.dtype, jnp.integer) else (0, 1, 2)
    found, outputs = jax.jit(jax.grad(scalar, argnums=argnums, has_aux=True))(weights, x, carry)
    return outputs, cotangents, jax.tree.leaves(found)


def check(implementation, dtype, inputs):
    """Compares all outputs and gradients with NumPy in float64."""
    weights, x, carry = inputs
    outputs, (dy, dc, dh), found = gradients(implementation, dtype, *inputs)
    assert [output.dtype for output in outputs] == [dtype, jnp.float32, jnp.float32]
    arrays = (*weights, np.asarray(x), *carry)
    expected = [*lstm_float64(*arrays), *lstm_gradients_float64(*arrays, dy=dy, dc=dc, dh=dh)]
    expected = [array for array in expected if array is not None]
    for actual, right in zip([*outputs, *found], expected, strict=True):
        assert relative(actual, right) < TOLERANCE[dtype]
