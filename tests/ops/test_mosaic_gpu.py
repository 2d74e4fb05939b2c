"""The kernels for Hopper GPUs, interpreted on a CPU: the contract of `charjax.ops.lstm` at small sizes.

What these tests cannot find: the interpreter finishes matmuls and copies at once, so a kernel that waits for too little
passes; and it has no messages between thread blocks, so a cluster's warpgroups run as those of one thread block and
exchange data through its memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import check, make_inputs
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.sharding import PartitionSpec

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm
from charjax.ops.lstm.experimental.mosaic_gpu import geometry
from charjax.ops.lstm.experimental.mosaic_gpu.layer import lstm_mosaic_gpu

# The interpreter runs every warpgroup on a thread of XLA's, which has at least one per device: fewer would deadlock.
pytestmark = [pytest.mark.slow, pytest.mark.devices(8)]

H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    function = functools.partial(lstm_mosaic_gpu, interpret=InterpretGPUParams())
    monkeypatch.setitem(IMPLEMENTATIONS, "interpreted", function)


run = functools.partial(lstm, implementation="interpreted", dtype="bfloat16")


@pytest.mark.parametrize(("size", "one_hot"), [((3, 5, 5, 6), False), ((29, 3, 67, 70), True)])
def test_one_thread_block(size, one_hot):
    check("interpreted", "bfloat16", make_inputs(size, one_hot, scale=0.1))


def test_a_cluster():
    check("interpreted", "bfloat16", make_inputs((3, 3, 5, 140), scale=0.1))


def test_a_cluster_that_divides_the_sums(monkeypatch):
    # As for 512 units, with fewer thread blocks: the interpreter gives each warpgroup a thread.
    small = geometry.Geometry(hidden=128, columns=16, warpgroups=1, blocks=2, halves=2)
    monkeypatch.setattr(geometry, "GEOMETRIES", (small,))
    check("interpreted", "bfloat16", make_inputs((3, 3, 5, 100), scale=0.1))


def test_an_integer_out_of_range_gives_nan():
    weights, x, carry = make_inputs(one_hot=True)
    y, _ = run(weights, x.at[0, 2].set(5), carry)
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_no_steps_change_nothing():
    weights, x, carry = make_inputs()
    y, after = run(weights, x[:, :0], carry)
    assert y.shape == (3, 0, 6)
    np.testing.assert_array_equal(after.c, carry.c)
    np.testing.assert_array_equal(after.h, carry.h)


def test_it_runs_under_vmap():
    weights, x, carry = make_inputs()
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


def test_what_it_does_not_support_is_named():
    inputs = make_inputs()
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=H100)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match="only bfloat16, not float32"):
        lstm(*inputs, implementation="mosaic_gpu", dtype="float32")
    with pytest.raises(NotImplementedError, match="only Hopper GPUs, not 'cpu'"):
        lstm(*inputs, implementation="mosaic_gpu", dtype="bfloat16")
    with pytest.raises(NotImplementedError, match="hidden units, not 513"):
        jax.eval_shape(run, *abstract(hidden=513))
