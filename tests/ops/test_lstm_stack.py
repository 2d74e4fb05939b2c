"""Stacks of layers: running all of them in one loop gives the same as one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def everything(implementation, weights, x, carry, keep, rate, dtype):
    """Outputs, and the gradients of a weighted sum of them with respect to all inputs."""
    rng = np.random.default_rng(1)
    floating = jnp.issubdtype(x.dtype, jnp.floating)

    def scalar(weights, carry, x):
        out = lstm_stack(weights, x, carry, keep=keep, rate=rate, implementation=implementation, dtype=dtype)
        pulls = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), out)
        return sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (out, pulls)), strict=True)), out

    gradient = jax.jit(jax.grad(scalar, argnums=(0, 1, 2) if floating else (0, 1), has_aux=True))
    return gradient(weights, carry, x)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("layers", "time", "one_hot", "dtype"),
    [
        (1, 7, True, "float32"),
        (2, 7, True, "float32"),
        (2, 7, False, "float32"),
        (3, 25, True, "float32"),  # more diagonals than one iteration takes
        (3, 25, False, "float32"),
        (4, 1, True, "float32"),  # fewer steps than layers: no diagonal is full
        (2, 19, True, "float32"),  # diagonals fill whole iterations
        (2, 12, True, "bfloat16"),
    ],
)
def test_one_loop_over_all_layers_gives_the_same(layers, time, one_hot, dtype, dropped):
    *arguments, keep = make(layers, time, one_hot)
    options = (keep, 0.3, dtype) if dropped else ((), 0.0, dtype)
    expected = everything("flax", *arguments, *options[:2], "float32")
    actual = everything("wavefront", *arguments, *options)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(other))))
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5 if dtype == "float32" else 3e-2)


def test_iterations_of_any_length_give_the_same(monkeypatch):
    weights, x, carry, keep = make(2, 13)
    run = lambda: everything("wavefront", weights, x, carry, keep, 0.3, "float32")  # noqa: E731
    expected = run()
    for unroll in (1, 4, 50):
        monkeypatch.setattr(wavefront, "UNROLL", unroll)
        for one, other in zip(jax.tree.leaves(run()), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


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
        with pytest.raises(ValueError, match=r"argument 2"):
            lstm_stack(weights, x, carry[:1], implementation=implementation)


def test_masks_that_do_not_fit_are_named():
    weights, x, carry, keep = make(3, 7)
    for masks in (keep[:1], [*keep, keep[0]], [keep[0], keep[1][:, :3]], [keep[0], keep[1].astype(jnp.float32)]):
        for implementation in ("wavefront", "scan"):
            with pytest.raises(ValueError, match=r"keep must be 2 bool masks of \(3, 7, 6\)"):
                lstm_stack(weights, x, carry, keep=masks, rate=0.5, implementation=implementation)
    with pytest.raises(ValueError, match="at least one"):
        lstm_stack([], x, [])
