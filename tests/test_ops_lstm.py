"""The contract of `charjax.ops.lstm`, held by every implementation against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lstm_reference import lstm_float64, numerical_gradient

from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm
from charjax.ops.lstm.flax_scan import LSTMCell
from charjax.types import LSTMCarry, LSTMWeights

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
SIZES = {"odd": (3, 7, 5, 6), "one": (1, 1, 1, 1), "wide": (2, 3, 33, 17)}  # B, T, D, H


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request):
    return request.param


def make_inputs(size, one_hot=False, seed=0):
    batch, time, inputs, hidden = SIZES[size]
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights = LSTMWeights(
        normal(inputs, 4 * hidden, scale=0.5),
        normal(hidden, 4 * hidden, scale=0.5),
        normal(4 * hidden, scale=0.5),
    )
    x = rng.integers(0, inputs, (batch, time)).astype(np.uint8) if one_hot else normal(batch, time, inputs)
    carry = LSTMCarry(normal(batch, hidden), normal(batch, hidden))
    return jax.tree.map(jnp.asarray, (weights, x, carry))


def reference(weights, x, carry):
    return lstm_float64(*weights, np.asarray(x), *carry)


def relative(actual, expected):
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / max(1.0, np.max(np.abs(expected)))


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("size", sorted(SIZES))
def test_forward(implementation, size, one_hot, dtype):
    weights, x, carry = make_inputs(size, one_hot)
    y, after = jax.jit(lambda *a: lstm(*a, implementation=implementation, dtype=dtype))(weights, x, carry)
    expected_y, expected_c, expected_h = reference(weights, x, carry)
    assert y.dtype == jnp.dtype(dtype)
    assert after.c.dtype == after.h.dtype == jnp.float32
    assert relative(y, expected_y) < TOLERANCE[dtype]
    assert relative(after.c, expected_c) < TOLERANCE[dtype]
    assert relative(after.h, expected_h) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("one_hot", [False, True])
def test_every_gradient(implementation, one_hot, dtype):
    weights, x, carry = make_inputs("odd", one_hot)
    rng = np.random.default_rng(1)
    y, c, h = reference(weights, x, carry)
    pull = [rng.standard_normal(a.shape).astype(np.float32) for a in (y, c, h)]

    def scalar(weights, x, carry):
        y, after = lstm(weights, x, carry, implementation=implementation, dtype=dtype)
        return sum(jnp.sum(a * b) for a, b in zip((y, after.c, after.h), pull, strict=True))

    arguments = (0, 2) if one_hot else (0, 1, 2)
    gradients = jax.jit(jax.grad(scalar, argnums=arguments))(weights, x, carry)
    flat, rebuild = jax.tree.flatten((weights, x, carry))
    places = [n for n, leaf in enumerate(flat) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    actual = jax.tree.leaves(gradients)
    assert len(actual) == len(places)
    for place, gradient in zip(places, actual, strict=True):

        def at(array, place=place):
            leaves = [*flat[:place], array, *flat[place + 1 :]]
            return sum(np.sum(a * b) for a, b in zip(reference(*rebuild.unflatten(leaves)), pull, strict=True))

        assert relative(gradient, numerical_gradient(at, flat[place])) < TOLERANCE[dtype]


def test_a_sequence_split_in_two_is_the_whole_sequence(implementation):
    weights, x, carry = make_inputs("odd")
    run = lambda x, carry: lstm(weights, x, carry, implementation=implementation)  # noqa: E731
    y, after = run(x, carry)
    first, between = run(x[:, :3], carry)
    second, after_split = run(x[:, 3:], between)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after_split.c, after.c, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after_split.h, after.h, rtol=1e-6, atol=1e-6)


def test_integers_are_one_hot_rows(implementation):
    weights, x, carry = make_inputs("odd", one_hot=True)
    y, _ = lstm(weights, x, carry, implementation=implementation)
    dense, _ = lstm(weights, jax.nn.one_hot(x, weights.w_ih.shape[0]), carry, implementation=implementation)
    np.testing.assert_allclose(y, dense, rtol=1e-6, atol=1e-6)


def test_an_integer_out_of_range_gives_nan(implementation):
    weights, x, carry = make_inputs("odd", one_hot=True)
    y, _ = lstm(weights, x.at[0, 2].set(5), carry, implementation=implementation)
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_shapes_that_do_not_fit_are_named():
    weights, x, carry = make_inputs("odd")
    with pytest.raises(ValueError, match=r"\[B, T, 5\] float .* \(3, 7, 4\)"):
        lstm(weights, x[:, :, :4], carry)
    with pytest.raises(ValueError, match=r"\(3, 6\), not \(2, 6\)"):
        lstm(weights, x, LSTMCarry(carry.c[:2], carry.h))
    with pytest.raises(ValueError, match=r"w_ih \[D, 4H\]"):
        lstm(weights._replace(bias=weights.bias[:3]), x, carry)


def test_unknown_implementation_and_dtype_are_named():
    weights, x, carry = make_inputs("odd")
    with pytest.raises(NotImplementedError, match=r"'cuda'.*flax, scan"):
        lstm(weights, x, carry, implementation="cuda")
    with pytest.raises(NotImplementedError, match=r"'float16'.*float32, bfloat16"):
        lstm(weights, x, carry, dtype="float16")


def test_the_cells_gradient_against_central_differences():
    weights, x, carry = make_inputs("odd")
    cell = LSTMCell(hidden_dim=6, input_dim=5)

    def scalar(weights, x, carry):
        after, h = cell.apply({"params": weights._asdict()}, carry, x)
        return jnp.sum(after.c * 0.3 + after.h) + jnp.sum(jnp.sin(h))

    def scalar_float64(w_ih):
        y, c, h = lstm_float64(w_ih, weights.w_hh, weights.bias, np.asarray(x[:, :1]), *carry)
        return np.sum(c * 0.3 + h) + np.sum(np.sin(y))

    gradient = jax.grad(scalar)(weights, x[:, 0], carry).w_ih
    assert relative(gradient, numerical_gradient(scalar_float64, weights.w_ih)) < 1e-5


def test_a_fresh_cell_remembers():
    cell = LSTMCell(hidden_dim=8, input_dim=5)
    zeros = LSTMCarry(jnp.zeros((1, 8)), jnp.zeros((1, 8)))
    params = cell.init(jax.random.key(0), zeros, jnp.zeros((1, 5)))["params"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 8))
    for gate in np.split(np.asarray(params["w_hh"]), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
