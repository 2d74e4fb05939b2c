"""What is particular to the TPU kernels, interpreted here; test_lstm.py has their contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from charjax import CharLSTM, make_train_step
from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.data.batching import make_streams
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm
from charjax.ops.lstm.experimental.mosaic_tpu.kernels import lstm_mosaic_tpu
from charjax.ops.lstm.experimental.mosaic_tpu.tiling import BLOCK_BYTES, LANES, MOST_ROWS, tiling
from charjax.train_state import init_train_state

pytestmark = pytest.mark.slow

BFLOAT16, FLOAT32 = jnp.dtype("bfloat16"), jnp.dtype("float32")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "interpreted", functools.partial(lstm_mosaic_tpu, interpret=True))


@pytest.fixture
def for_a_tpu():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def make_inputs(batch=3, time=9, inputs=5, hidden=6, models=()):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(0.1 * rng.standard_normal((*models, *shape)), jnp.float32)

    weights = LSTMWeights(normal(inputs, 4 * hidden), normal(hidden, 4 * hidden), normal(4 * hidden))
    return weights, normal(batch, time, inputs), LSTMCarry(normal(batch, hidden), normal(batch, hidden))


def loss(implementation, weights, x, carry):
    """A scalar of all outputs."""
    outputs = jax.tree.leaves(lstm(weights, x, carry, implementation=implementation))
    return sum(jnp.sum(jnp.sin(out + 0.1)) for out in outputs)


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("time", [1, 7, 8, 9, 100, 1001])
@pytest.mark.parametrize(("batch", "hidden"), [(1, 1), (16, 128), (129, 130), (64, 512), (1000, 1024), (300, 2048)])
def test_a_tiling_covers_the_layer(time, batch, hidden, dtype):
    cut = tiling(time, batch, hidden, dtype, unit_bytes=11 * dtype.itemsize)
    assert cut.tiles * cut.rows >= batch > (cut.tiles - 1) * cut.rows
    assert cut.blocks * cut.steps >= time > (cut.blocks - 1) * cut.steps
    assert cut.hidden - LANES < hidden <= cut.hidden
    assert cut.hidden % LANES == 0
    assert cut.rows % (8 * 4 // dtype.itemsize) == 0
    assert cut.rows <= MOST_ROWS
    assert cut.steps == 1 or 2 * cut.steps * cut.rows * cut.hidden * 11 * dtype.itemsize <= BLOCK_BYTES


# Two tiles of rows, the second padded; two groups of units, the second padded; a last block of fewer steps than others.
@pytest.mark.parametrize("sizes", [{"batch": MOST_ROWS + 2, "time": 2}, {"hidden": LANES + 2, "time": 11}])
def test_padding_and_tiles_change_nothing(sizes):
    arguments = make_inputs(**sizes)
    value = lambda name: jax.jit(jax.value_and_grad(functools.partial(loss, name), argnums=(0, 1, 2)))(*arguments)  # noqa: E731
    assert_close(value("interpreted"), value("recompute"))


@pytest.mark.parametrize("batched", [(0, 0, 0), (None, 0, None), (0, None, None)])
def test_gradients_under_vmap(batched):
    several = make_inputs(models=(2,))
    arguments = [
        a if axis == 0 else jax.tree.map(lambda leaf: leaf[0], a) for a, axis in zip(several, batched, strict=True)
    ]
    gradient = lambda name: jax.vmap(jax.grad(functools.partial(loss, name), argnums=(0, 1, 2)), in_axes=batched)  # noqa: E731
    assert_close(gradient("interpreted")(*arguments), gradient("recompute")(*arguments))


def test_windows_under_scan():
    weights, x, carry = make_inputs(time=6)

    def windows(weights, implementation):
        def step(carry, x):
            y, carry = lstm(weights, x, carry, implementation=implementation)
            return carry, y

        last, y = jax.lax.scan(step, carry, jnp.stack([x, 2 * x, 3 * x]))
        return jnp.sum(y**2) + jnp.sum(last.c), y

    found, right = (
        jax.jit(jax.value_and_grad(windows, has_aux=True), static_argnums=1)(weights, n)
        for n in ("interpreted", "recompute")
    )
    assert_close(found, right)


def test_no_steps_have_gradients():
    weights, x, carry = make_inputs(time=0)
    gradients = jax.grad(functools.partial(loss, "interpreted"), argnums=(0, 1, 2))(weights, x, carry)
    np.testing.assert_array_equal(gradients[0].w_hh, 0)
    np.testing.assert_allclose(gradients[2].c, jnp.cos(carry.c + 0.1), rtol=1e-6)


def test_a_training_step_over_devices():
    mesh, optimizer = make_mesh(jax.devices()[:2]), optax.sgd(1.0)
    ids = np.random.default_rng(0).integers(0, 11, 200).astype(np.uint8)
    streams = put_streams(make_streams(ids, batch_size=4, seq_len=10), mesh)

    def train(implementation):
        model = CharLSTM(11, 8, 2, implementation=implementation, dtype="float32")
        state = init_train_state(jax.random.key(0), model, optimizer, batch_size=4, mesh=mesh)
        state, metrics = make_train_step(model, optimizer, seq_len=10, mesh=mesh, steps_per_call=3)(state, streams)
        return state.params, state.carry, metrics

    assert_close(train("interpreted"), train("recompute"))


@pytest.mark.usefixtures("for_a_tpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_kernels_lower_for_a_tpu(dtype):
    def scalar(*arguments):
        return jnp.sum(lstm(*arguments, implementation="mosaic_tpu", dtype=dtype)[0].astype(jnp.float32))

    arguments = make_inputs(batch=20, time=9, hidden=130)
    program = jax.jit(jax.grad(scalar)).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("tpu_custom_call") == 2


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(NotImplementedError, match="cannot hold 4096 units in float32"):
        tiling(10, 64, 4096, FLOAT32, unit_bytes=24)
