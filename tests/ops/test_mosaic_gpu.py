"""The kernels for Hopper GPUs, interpreted on a processor: `charjax.ops.lstm`'s contract at sizes that this affords.

What these tests leave open: an interpreted product or copy is done at once, so that a kernel could wait for too little
and pass; and Pallas interprets no messages between thread blocks, so that a cluster's warpgroups are interpreted as
those of one thread block, which hand on through its memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import SIZES, TOLERANCE, make_inputs, relative
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.sharding import PartitionSpec

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm import api
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm
from charjax.ops.lstm.experimental import mosaic_gpu
from charjax.ops.lstm.experimental.mosaic_gpu import geometry

H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    function = functools.partial(mosaic_gpu.lstm_mosaic_gpu, interpret=InterpretGPUParams())
    monkeypatch.setitem(IMPLEMENTATIONS, "interpreted", function)


run = functools.partial(lstm, implementation="interpreted", dtype="bfloat16")


def outputs_and_gradients(implementation, dtype, inputs):
    """Everything that comes out, and the gradients of a weighted sum of it."""
    weights, x, carry = inputs
    rng = np.random.default_rng(1)

    def scalar(weights, x, carry):
        outputs = jax.tree.leaves(lstm(weights, x, carry, implementation=implementation, dtype=dtype))
        return sum(jnp.sum(out * rng.standard_normal(out.shape).astype(np.float32)) for out in outputs), outputs

    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    gradient = jax.grad(scalar, argnums=(0, 2) if one_hot else (0, 1, 2), has_aux=True)
    gradients, outputs = jax.jit(gradient)(weights, x, carry)
    return outputs, jax.tree.leaves(gradients)


def agrees(inputs):
    outputs, gradients = outputs_and_gradients("interpreted", "bfloat16", inputs)
    assert [out.dtype for out in outputs] == [jnp.bfloat16, jnp.float32, jnp.float32]
    right_outputs, right_gradients = outputs_and_gradients("flax", "float32", inputs)
    for actual, right in zip(outputs + gradients, right_outputs + right_gradients, strict=True):
        assert relative(actual, np.asarray(right, np.float64)) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize(("size", "one_hot"), [((3, 5, 5, 6), False), ((29, 3, 67, 70), True)])
def test_one_thread_block(size, one_hot, monkeypatch):
    monkeypatch.setitem(SIZES, "block", size)
    agrees(make_inputs("block", one_hot, scale=0.1))


def test_a_cluster(monkeypatch):
    monkeypatch.setitem(SIZES, "cluster", (3, 3, 5, 140))
    agrees(make_inputs("cluster", scale=0.1))


def test_a_cluster_that_shares_the_sums_out(monkeypatch):
    # As at 512 units, with fewer thread blocks: the interpreter gives each warpgroup a thread.
    small = geometry.Geometry(hidden=128, columns=16, warpgroups=1, blocks=2, halves=2)
    monkeypatch.setattr(geometry, "GEOMETRIES", (small,))
    monkeypatch.setitem(SIZES, "halves", (3, 3, 5, 100))
    agrees(make_inputs("halves", scale=0.1))


def test_an_integer_out_of_range_gives_nan():
    weights, x, carry = make_inputs("odd", one_hot=True)
    y, _ = run(weights, x.at[0, 2].set(5), carry)
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_no_steps_change_nothing():
    weights, x, carry = make_inputs("odd")
    y, after = run(weights, x[:, :0], carry)
    assert y.shape == (3, 0, 6)
    np.testing.assert_array_equal(after.c, carry.c)
    np.testing.assert_array_equal(after.h, carry.h)


def test_it_runs_under_vmap():
    weights, x, carry = make_inputs("odd")
    x = x[:, :2]
    twice = jax.vmap(lambda x: run(weights, x, carry)[0])(jnp.stack([x, 2 * x]))
    np.testing.assert_array_equal(twice[1], run(weights, 2 * x, carry)[0])


def abstract(hidden, batch=4, time=3, inputs=5):
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    weights = LSTMWeights(array(inputs, 4 * hidden), array(hidden, 4 * hidden), array(4 * hidden))
    return weights, array(batch, time, inputs), LSTMCarry(array(batch, hidden), array(batch, hidden))


@pytest.mark.parametrize("hidden", [100, 200, 300])
def test_it_lowers_for_a_gpu_under_shard_map(hidden):
    mesh = jax.sharding.AbstractMesh((2,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=H100)

    def loss(weights, x, carry):
        weights = jax.lax.pcast(weights, "data", to="varying")
        y, after = lstm(weights, x, carry, implementation="mosaic_gpu", dtype="bfloat16")
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(after.c)

    def step(weights, x, carry):
        return jax.lax.pmean(jax.grad(loss)(weights, x, carry), "data")

    specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec("data"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    text = jax.jit(mapped).trace(*abstract(hidden)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu_v2") == 2


def test_it_is_chosen_by_name_only():
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=H100)
    with jax.sharding.use_abstract_mesh(mesh):
        assert api.default_implementation("bfloat16", 100) == "wavefront"


def test_what_it_does_not_serve_is_named():
    inputs = make_inputs("odd")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=H100)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match="bfloat16, not float32"):
        lstm(*inputs, implementation="mosaic_gpu", dtype="float32")
    with pytest.raises(NotImplementedError, match="Hopper GPUs, not 'cpu'"):
        lstm(*inputs, implementation="mosaic_gpu", dtype="bfloat16")
    with pytest.raises(NotImplementedError, match="hidden units, not 513"):
        jax.eval_shape(run, *abstract(hidden=513))
