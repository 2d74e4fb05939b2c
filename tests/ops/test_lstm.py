"""The contract of `charjax.ops.lstm`: every implementation gives the numbers of NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import NOT_ON_CPU, SIZES, TOLERANCE, check, compiled, make_inputs, relative
from helpers.lstm_reference import lstm_gradients_float64

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm import api, native, wavefront
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm
from charjax.ops.lstm.experimental.mosaic_tpu.kernels import lstm_mosaic_tpu
from charjax.ops.lstm.native.libraries import libraries
from charjax.ops.lstm.reference import LSTMCell

# Every form of the native kernel that this CPU runs is an implementation of its own here.
NATIVE = {f"native {library.instructions}": library for library in libraries()}
BEST, OTHERS = [*NATIVE][:1], [*NATIVE][1:]
PORTABLE = sorted({*IMPLEMENTATIONS} - {"native"} - NOT_ON_CPU)
INTERPRETED = "mosaic_tpu interpreted"


def slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def cases(names):
    """(implementation, dtype) for every dtype that an implementation supports."""
    dtypes = lambda name: NATIVE[name].dtypes if name in NATIVE else sorted(TOLERANCE)  # noqa: E731
    return [(name, dtype) for name in names for dtype in dtypes(name)]


def grid():
    """(implementation, dtype, size, one_hot), of which the default tier runs the sizes where something differs."""
    sizes = {name: {("odd", False), ("odd", True)} for name in PORTABLE}
    sizes |= {name: {("odd", False), ("tiles", True)} for name in NATIVE}
    sizes |= {name: sizes[name] | {("one", False), ("long", True), ("tiles", False)} for name in BEST}
    return [
        pytest.param(*case, size, one_hot, marks=() if (size, one_hot) in sizes.get(case[0], ()) else pytest.mark.slow)
        for case in cases([*PORTABLE, *NATIVE, INTERPRETED])
        for size in SIZES
        for one_hot in (False, True)
    ]


@pytest.fixture(params=[*PORTABLE, *BEST, *slow([*OTHERS, INTERPRETED])])
def implementation(request):
    return request.param


@pytest.fixture(autouse=True)
def _implementations(monkeypatch):
    for name, library in NATIVE.items():
        monkeypatch.setitem(IMPLEMENTATIONS, name, functools.partial(native.lstm_native, library=library))
    monkeypatch.setitem(IMPLEMENTATIONS, INTERPRETED, functools.partial(lstm_mosaic_tpu, interpret=True))
    # Less to compile; test_lstm_stack.py tests other lengths.
    monkeypatch.setattr(wavefront, "UNROLL", 3)


@pytest.mark.parametrize(("implementation", "dtype", "size", "one_hot"), grid())
def test_outputs_and_gradients(implementation, dtype, size, one_hot):
    check(implementation, dtype, make_inputs(size, one_hot))


def test_a_sequence_split_in_two_gives_the_same(implementation):
    weights, x, carry = make_inputs()
    run = compiled(implementation)
    y, after = run(weights, x, carry)
    first, between = run(weights, x[:, :3], carry)
    second, after_split = run(weights, x[:, 3:], between)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after_split.c, after.c, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after_split.h, after.h, rtol=1e-6, atol=1e-6)


def test_integers_are_one_hot_rows(implementation):
    weights, x, carry = make_inputs(one_hot=True)
    run = compiled(implementation)
    dense, _ = run(weights, jax.nn.one_hot(x, weights.w_ih.shape[0]), carry)
    np.testing.assert_allclose(run(weights, x, carry)[0], dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outside", [5, -1, 200])
def test_an_integer_out_of_range_gives_nan(implementation, outside):
    weights, x, carry = make_inputs(one_hot=True)
    y, _ = compiled(implementation)(weights, x.astype(jnp.int32).at[0, 2].set(outside), carry)
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_narrow_integers_select_among_more_rows_than_they_can_count(implementation):
    weights, x, carry = make_inputs((3, 7, 300, 6), one_hot=True, scale=0.1)
    check(implementation, "float32", (weights, (x % 256).astype(jnp.uint8), carry))


def test_no_sequences_and_no_units_give_nothing(implementation):
    weights, x, carry = make_inputs()
    none = LSTMCarry(carry.c[:0], carry.h[:0])
    gradient = jax.grad(lambda w: jnp.sum(lstm(w, x[:0], none, implementation=implementation)[0]))(weights)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    empty = LSTMWeights(weights.w_ih[:, :0], weights.w_hh[:0, :0], weights.bias[:0])
    y, _ = lstm(empty, x, LSTMCarry(carry.c[:, :0], carry.h[:, :0]), implementation=implementation)
    assert y.shape == (3, 7, 0)


def test_no_steps_change_nothing(implementation):
    weights, x, carry = make_inputs()
    y, after = lstm(weights, x[:, :0], carry, implementation=implementation)
    assert y.shape == (3, 0, 6)
    np.testing.assert_array_equal(after.c, carry.c)
    np.testing.assert_array_equal(after.h, carry.h)


def test_it_runs_under_vmap(implementation):
    weights, x, carry = make_inputs()
    run = compiled(implementation)
    twice = jax.vmap(lambda x: run(weights, x, carry)[0])(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(twice[1], run(weights, 2 * x, carry)[0], atol=1e-6)


def test_shapes_that_do_not_fit_are_named():
    weights, x, carry = make_inputs()
    with pytest.raises(ValueError, match=r"\[B, T, 5\] float .* \(3, 7, 4\)"):
        lstm(weights, x[:, :, :4], carry)
    with pytest.raises(ValueError, match=r"\(3, 6\), not \(2, 6\)"):
        lstm(weights, x, LSTMCarry(carry.c[:2], carry.h))
    with pytest.raises(ValueError, match=r"w_ih \[D, 4H\]"):
        lstm(weights._replace(bias=weights.bias[:3]), x, carry)


def test_unknown_implementation_and_dtype_are_named():
    weights, x, carry = make_inputs()
    with pytest.raises(NotImplementedError, match=r"'cuda'.*flax, scan"):
        lstm(weights, x, carry, implementation="cuda")
    with pytest.raises(NotImplementedError, match=r"'float16'.*float32, bfloat16"):
        lstm(weights, x, carry, dtype="float16")


def test_the_gradient_of_a_cell():
    weights, x, carry = make_inputs()
    cell = LSTMCell(hidden_dim=6, input_dim=5)
    dy, dc, dh = np.random.default_rng(1).standard_normal((3, 3, 6)).astype(np.float32)

    def scalar(weights, x, carry):
        after, y = cell.apply({"params": weights._asdict()}, carry, x)
        return jnp.sum(y * dy) + jnp.sum(after.c * dc) + jnp.sum(after.h * dh)

    found = jax.tree.leaves(jax.grad(scalar, argnums=(0, 1, 2))(weights, x[:, 0], carry))
    right = lstm_gradients_float64(*weights, np.asarray(x[:, :1]), *carry, dy=dy[:, None], dc=dc, dh=dh)
    for actual, expected in zip(found, right._replace(x=right.x[:, 0]), strict=True):
        assert relative(actual, expected) < TOLERANCE["float32"]


def test_a_new_cell_remembers():
    cell = LSTMCell(hidden_dim=8, input_dim=5)
    zeros = LSTMCarry(jnp.zeros((1, 8)), jnp.zeros((1, 8)))
    params = cell.init(jax.random.key(0), zeros, jnp.zeros((1, 5)))["params"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 8))
    for gate in np.split(np.asarray(params["w_hh"]), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)


def test_the_default_follows_the_platform_compiled_for():
    h100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=h100)
    inputs = make_inputs()  # nothing is computed for the mesh
    with jax.sharding.use_abstract_mesh(mesh):
        assert api.default_implementation("float32", 1) == "wavefront"
        assert api.default_implementation("bfloat16", 100) == "wavefront"
        assert api.default_dtype() == "bfloat16"
        with pytest.raises(NotImplementedError, match=r"'native' .* 'gpu'"):
            lstm(*inputs, implementation="native")
    tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)):
        assert api.default_implementation("bfloat16", 100) == "recompute"
