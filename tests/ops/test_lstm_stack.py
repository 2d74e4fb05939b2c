"""Stacks of layers: one loop over all of them gives the numbers of NumPy, one layer after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import relative
from helpers.lstm_reference import lstm_float64, lstm_gradients_float64

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm import wavefront
from charjax.ops.lstm.api import lstm_stack

BATCH, HIDDEN, INPUTS = 3, 6, 5


def make(layers, time, one_hot=True):
    rng = np.random.default_rng(layers * 100 + time)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 2, jnp.float32)  # noqa: E731
    weights = [
        LSTMWeights(normal(HIDDEN if n else INPUTS, 4 * HIDDEN), normal(HIDDEN, 4 * HIDDEN), normal(4 * HIDDEN))
        for n in range(layers)
    ]
    x = jnp.asarray(rng.integers(0, INPUTS, (BATCH, time)), jnp.uint8) if one_hot else normal(BATCH, time, INPUTS)
    carry = [LSTMCarry(normal(BATCH, HIDDEN), normal(BATCH, HIDDEN)) for _ in range(layers)]
    keep = [jnp.asarray(rng.random((BATCH, time, HIDDEN)) < 0.7) for _ in range(layers - 1)]
    return weights, x, carry, keep


def reference(weights, x, carry, keep, rate, pulls):
    """Outputs, and gradients with respect to (weights, carry, x), of NumPy in float64, one layer after the other."""
    (dy, pull_carry), inputs, after = pulls, [np.asarray(x)], []
    drop = lambda y, n: y * np.asarray(keep[n]) / (1 - rate) if n < len(keep) else y  # noqa: E731
    for n, (layer, before) in enumerate(zip(weights, carry, strict=True)):
        y, *last = lstm_float64(*layer, inputs[n], *before)
        inputs.append(drop(y, n))
        after.append(last)
    gradients = []
    for n in reversed(range(len(weights))):
        dc, dh = pull_carry[n]
        gradients.append(lstm_gradients_float64(*weights[n], inputs[n], *carry[n], dy=dy, dc=dc, dh=dh))
        dy = None if n == 0 else drop(gradients[-1].x, n - 1)
    gradients.reverse()
    return (inputs[-1], after), ([g[:3] for g in gradients], [g[4:] for g in gradients], gradients[0].x)


@pytest.mark.parametrize(
    ("layers", "time", "one_hot", "dtype", "rate", "unroll"),
    [
        (1, 4, True, "float32", 0.0, 3),
        (2, 5, False, "float32", 0.0, 3),  # diagonals fill whole iterations
        (2, 5, True, "float32", 0.3, 1),
        (2, 5, True, "float32", 0.3, 50),
        (3, 6, True, "float32", 0.3, 3),  # two iterations, and diagonals left over
        (3, 6, False, "float32", 0.3, 3),
        (4, 1, True, "float32", 0.0, 3),  # fewer steps than layers: no diagonal is full
        (4, 1, True, "float32", 0.3, 3),
        (2, 5, True, "bfloat16", 0.0, 3),
        (2, 5, True, "bfloat16", 0.3, 3),
    ],
)
def test_outputs_and_gradients(monkeypatch, layers, time, one_hot, dtype, rate, unroll):
    monkeypatch.setattr(wavefront, "UNROLL", unroll)
    weights, x, carry, keep = make(layers, time, one_hot)
    keep = keep if rate else ()
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    pull_carry = [(normal(BATCH, HIDDEN), normal(BATCH, HIDDEN)) for _ in range(layers)]
    pulls = normal(BATCH, time, HIDDEN), pull_carry

    def scalar(weights, carry, x, rate):
        out = lstm_stack(weights, x, carry, keep=keep, rate=rate, implementation="wavefront", dtype=dtype)
        return sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (out, pulls)), strict=True)), out

    gradient = jax.jit(jax.grad(scalar, argnums=(0, 1) if one_hot else (0, 1, 2), has_aux=True))
    gradients, out = gradient(weights, carry, x, np.float32(rate))  # the rate is traced
    expected = reference(weights, x, carry, keep, rate, pulls)
    for actual, right in zip(*map(jax.tree.leaves, ((out, gradients), expected)), strict=True):
        assert relative(actual, right) < (2e-5 if dtype == "float32" else 3e-2)


def test_no_steps_change_nothing():
    weights, x, carry, _ = make(2, 0)
    y, after = lstm_stack(weights, x, carry, implementation="wavefront")
    assert y.shape == (BATCH, 0, HIDDEN)
    jax.tree.map(np.testing.assert_array_equal, list(after), carry)


def test_an_integer_out_of_range_gives_nan_from_there_on():
    weights, x, carry, _ = make(2, 7)
    y, _ = lstm_stack(weights, x.at[0, 2].set(INPUTS), carry, implementation="wavefront")
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_shapes_that_do_not_fit_are_named():
    weights, x, carry, _ = make(2, 7)
    short = [carry[0], LSTMCarry(carry[1].c[:2], carry[1].h)]
    for implementation in ("wavefront", "scan"):
        with pytest.raises(ValueError, match=r"\(3, 6\), not \(2, 6\)"):
            lstm_stack(weights, x, short, implementation=implementation)
        with pytest.raises(ValueError, match=r"carry must be 2 LSTMCarry, one per layer \(see init_carry\), not 1"):
            lstm_stack(weights, x, carry[:1], implementation=implementation)


def test_masks_that_do_not_fit_are_named():
    weights, x, carry, keep = make(3, 7)
    for masks in (keep[:1], [*keep, keep[0]], [keep[0], keep[1][:, :3]], [keep[0], keep[1].astype(jnp.float32)]):
        for implementation in ("wavefront", "scan"):
            with pytest.raises(ValueError, match=r"keep must be 2 bool masks of \(3, 7, 6\)"):
                lstm_stack(weights, x, carry, keep=masks, rate=0.5, implementation=implementation)
    with pytest.raises(ValueError, match="at least one"):
        lstm_stack([], x, [])
