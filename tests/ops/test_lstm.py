"""The contract of `charjax.ops.lstm`, held by every implementation against float64 NumPy."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import NOT_ON_CPU, SIZES, TOLERANCE, gradients, make_inputs, reference, relative
from helpers.lstm_reference import lstm_float64, numerical_gradient

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm import api, native, wavefront
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm
from charjax.ops.lstm.experimental.mosaic_tpu import kernels as mosaic_tpu
from charjax.ops.lstm.reference import LSTMCell

# Every form of the native kernel that this processor runs is an implementation of its own here.
NATIVE = {f"native {library.instructions}": library for library in native.libraries()}
# Kernels for TPUs are interpreted.
INTERPRETED = {"mosaic_tpu interpreted": functools.partial(mosaic_tpu.lstm_mosaic_tpu, interpret=True)}
NAMES = sorted({*IMPLEMENTATIONS} - {"native", "mosaic_tpu"} - NOT_ON_CPU | {*NATIVE, *INTERPRETED})


@pytest.fixture(params=NAMES)
def implementation(request, monkeypatch):
    # Its own length of trips is compiled in test_ops_lstm_stack.
    monkeypatch.setattr(wavefront, "UNROLL", 3)
    if request.param in NATIVE:
        function = functools.partial(native.lstm_native, library=NATIVE[request.param])
        monkeypatch.setitem(IMPLEMENTATIONS, request.param, function)
    elif request.param in INTERPRETED:
        monkeypatch.setitem(IMPLEMENTATIONS, request.param, INTERPRETED[request.param])
    return request.param


def serves(implementation, dtype):
    return implementation not in NATIVE or dtype in NATIVE[implementation].dtypes


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("size", ["odd", "one", "wide", "tiles"])
def test_forward(implementation, size, one_hot, dtype):
    if not serves(implementation, dtype):
        return
    weights, x, carry = make_inputs(size, one_hot, scale=0.1 if size == "tiles" else 0.5)
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
    if not serves(implementation, dtype):
        return
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


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("size", ["long", "tiles"])
def test_gradients_of_larger_sizes_are_those_of_the_reference(implementation, size, one_hot, dtype):
    if not serves(implementation, dtype):
        return
    # Small weights, so that long sequences do not multiply rounding errors.
    weights, x, carry = make_inputs(size, one_hot, scale=0.1)
    expected = gradients("flax", "float32", weights, x, carry)
    for actual, right in zip(gradients(implementation, dtype, weights, x, carry), expected, strict=True):
        assert relative(actual, np.asarray(right, np.float64)) < TOLERANCE[dtype]


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


@pytest.mark.parametrize("outside", [5, -1, 200])
def test_an_integer_out_of_range_gives_nan(implementation, outside):
    weights, x, carry = make_inputs("odd", one_hot=True)
    y, _ = lstm(weights, x.astype(jnp.int32).at[0, 2].set(outside), carry, implementation=implementation)
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_narrow_integers_choose_among_more_rows_than_they_can_count(implementation, monkeypatch):
    monkeypatch.setitem(SIZES, "rows", (3, 7, 300, 6))
    weights, x, carry = make_inputs("rows", one_hot=True, scale=0.1)
    x = (x % 256).astype(jnp.uint8)
    expected = gradients("flax", "float32", weights, x.astype(jnp.int32), carry)
    for actual, right in zip(gradients(implementation, "float32", weights, x, carry), expected, strict=True):
        assert relative(actual, np.asarray(right, np.float64)) < TOLERANCE["float32"]


def test_no_sequences_and_no_units_are_nothing(implementation):
    weights, x, carry = make_inputs("odd")
    none = LSTMCarry(carry.c[:0], carry.h[:0])
    gradient = jax.grad(lambda w: jnp.sum(lstm(w, x[:0], none, implementation=implementation)[0]))(weights)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    empty = LSTMWeights(weights.w_ih[:, :0], weights.w_hh[:0, :0], weights.bias[:0])
    y, _ = lstm(empty, x, LSTMCarry(carry.c[:, :0], carry.h[:, :0]), implementation=implementation)
    assert y.shape == (3, 7, 0)


def test_no_steps_change_nothing(implementation):
    weights, x, carry = make_inputs("odd")
    y, after = lstm(weights, x[:, :0], carry, implementation=implementation)
    assert y.shape == (3, 0, 6)
    np.testing.assert_array_equal(after.c, carry.c)
    np.testing.assert_array_equal(after.h, carry.h)


@pytest.mark.parametrize("one_hot", [False, True])
def test_threads_share_the_rows_out(monkeypatch, one_hot):
    arguments = make_inputs("tiles", one_hot)
    y, after = lstm(*arguments, implementation="native")
    alone = gradients("native", "float32", *arguments)
    monkeypatch.setattr(native, "threads_of_a_call", lambda: 3)
    y_shared, after_shared = lstm(*arguments, implementation="native")
    # A row's numbers do not depend on which thread makes them; sums over rows are added up in another order.
    np.testing.assert_array_equal(y_shared, y)
    np.testing.assert_array_equal(after_shared.c, after.c)
    for one, other in zip(gradients("native", "float32", *arguments), alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_it_runs_under_vmap(implementation):
    weights, x, carry = make_inputs("odd")
    twice = jax.vmap(lambda x: lstm(weights, x, carry, implementation=implementation)[0])(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(twice[1], lstm(weights, 2 * x, carry, implementation=implementation)[0], atol=1e-6)


def test_the_default_is_native_where_packing_pays(monkeypatch):
    api._default_for_sequences.cache_clear()
    assert api.default_implementation("float32", 100) == "native"
    assert api.default_implementation("float32", 1) == "custom_vjp"
    monkeypatch.setattr(native, "libraries", lambda: ())
    api._default_for_sequences.cache_clear()
    assert api.default_implementation("float32", 100) == "custom_vjp"
    api._default_for_sequences.cache_clear()


def test_the_kernel_is_there_where_a_compiler_is():
    assert native.libraries() or not shutil.which("c++")


def test_a_machine_without_the_kernel_is_told(monkeypatch):
    monkeypatch.setattr(native, "libraries", lambda: ())
    with pytest.raises(NotImplementedError, match="'native' is not there for bfloat16"):
        lstm(*make_inputs("odd"), implementation="native", dtype="bfloat16")


@pytest.mark.parametrize("name", sorted(NOT_ON_CPU))
def test_what_serves_elsewhere_alone_is_refused_on_the_cpu(name):
    with pytest.raises(NotImplementedError, match=f"'{name}' .*'cpu'"):
        lstm(*make_inputs("odd"), implementation=name, dtype="float32" if name == "cudnn" else "bfloat16")


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


def test_the_default_follows_what_is_compiled_for():
    h100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=h100)
    with jax.sharding.use_abstract_mesh(mesh):
        assert api.default_implementation("float32", 1) == "wavefront"
        assert api.default_dtype() == "bfloat16"
        with pytest.raises(NotImplementedError, match=r"'native' .* 'gpu'"):
            lstm(*make_inputs("odd"), implementation="native")
