"""An implementation of an LSTM layer on the device itself, against float64 NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.problem import VOCAB
from benchmarks.common.reference import lstm_float64, lstm_gradients_float64
from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import lstm_stack


def check(implementation: str, dtype: str, hidden_dim: int, batch_size: int, seq_len: int) -> dict[str, float]:
    """Runs two layers, the first on characters.

    It runs twice, each time in memory that holds NaN, where an output that is not written would show.

    Returns:
        The largest error of the "outputs" and of the "gradients", and "moves", the largest difference between the two
        runs: large for a race, and about as large as the errors where XLA adds in an order that varies. An array's
        error is its largest difference as a share of the array's largest value.
    """
    layers, ids, carries, pulls = _inputs(hidden_dim, batch_size, seq_len)

    def scalar(layers: Any, carries: Any) -> Any:
        y, after = lstm_stack(layers, ids, carries, implementation=implementation, dtype=dtype)
        outputs = (y, [(carry.c, carry.h) for carry in after])
        products = jax.tree.map(lambda out, pull: jnp.sum(out * pull), outputs, pulls)
        return sum(jax.tree.leaves(products)), outputs

    # By default a GPU's float32 products are TensorFloat-32, and a TPU's bfloat16.
    with jax.default_matmul_precision("highest" if dtype == "float32" else None):
        run = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))
        runs = []
        for _ in range(2):
            _fill_memory_with_nan()
            (_, outputs), gradients = jax.device_get(run(layers, carries))
            runs.append((outputs, gradients))
    expected = _expected(hidden_dim, batch_size, seq_len)
    outputs, gradients = (
        max(_largest_error(actual[part], expected[part]) for actual in runs) for part in range(len(expected))
    )
    return {"outputs": outputs, "gradients": gradients, "moves": _largest_error(*runs)}


def _fill_memory_with_nan() -> None:
    """Writes NaN to memory that JAX then reuses for the next program's results."""
    jax.block_until_ready([jnp.full(1 << size, jnp.nan) for size in range(10, 24) for _ in range(4)])


def _largest_error(actual: Any, expected: Any) -> float:
    def error(a: Any, e: Any) -> float:
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        # A NaN is the largest error of all; max() might pass over it.
        return float(np.nan_to_num(np.max(np.abs(a - e)) / np.max(np.abs(e)), nan=np.inf))

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


def _inputs(hidden: int, batch: int, time: int) -> Any:
    """Returns the layers' weights, the characters, the initial states, and the cotangents of all outputs."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    layers = [
        LSTMWeights(
            normal(inputs, 4 * hidden, scale=scale), normal(hidden, 4 * hidden, scale=hidden**-0.5), normal(4 * hidden)
        )
        for inputs, scale in ((VOCAB, 1.0), (hidden, hidden**-0.5))
    ]
    ids = rng.integers(0, VOCAB, (batch, time)).astype(np.uint8)
    carries = [LSTMCarry(normal(batch, hidden), normal(batch, hidden)) for _ in layers]
    pulls = (normal(batch, time, hidden), [(normal(batch, hidden), normal(batch, hidden)) for _ in layers])
    return layers, ids, carries, pulls


@functools.cache
def _expected(hidden: int, batch: int, time: int) -> Any:
    """Returns outputs and gradients in float64, structured as `check` gets them."""
    (first, second), ids, carries, (dy, ((dc_0, dh_0), (dc_1, dh_1))) = _inputs(hidden, batch, time)
    y_0, *after_0 = lstm_float64(*first, ids, *carries[0])
    y_1, *after_1 = lstm_float64(*second, y_0, *carries[1])
    upper = lstm_gradients_float64(*second, y_0, *carries[1], dy=dy, dc=dc_1, dh=dh_1)
    lower = lstm_gradients_float64(*first, ids, *carries[0], dy=upper.x, dc=dc_0, dh=dh_0)
    weights = [LSTMWeights(part.w_ih, part.w_hh, part.bias) for part in (lower, upper)]
    states = [LSTMCarry(part.c, part.h) for part in (lower, upper)]
    return (y_1, [tuple(after_0), tuple(after_1)]), (weights, states)
