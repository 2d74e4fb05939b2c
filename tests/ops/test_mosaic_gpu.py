"""The kernels for Hopper GPUs, interpreted on a CPU: the contract of `charjax.ops.lstm` at small sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import check, make_inputs
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.sharding import PartitionSpec

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm, lstm_stack
from charjax.ops.lstm.experimental.mosaic_gpu import stack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.__version_info__ < stack.OLDEST_JAX, reason="needs JAX 0.11"),
]

H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
run_stack = functools.partial(stack.run_stack, interpret=InterpretGPUParams())


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    def one_layer(weights, x, carry, dtype):
        y, (carry,) = run_stack((weights,), x, (carry,), (), jnp.float32(0), dtype)
        return y, carry

    monkeypatch.setitem(IMPLEMENTATIONS, "interpreted", one_layer)
    # Less to compile: iterations and a remainder all the same.
    monkeypatch.setattr(stack, "UNROLL", 2)


@pytest.mark.parametrize(
    ("size", "one_hot", "dtype"),
    [
        ((3, 5, 5, 6), False, "float32"),
        ((3, 4, 300, 130), True, "float32"),
        ((2, 1, 140, 128), False, "bfloat16"),
        ((29, 3, 67, 70), True, "bfloat16"),
    ],
)
def test_one_layer(size, one_hot, dtype):
    check("interpreted", dtype, make_inputs(size, one_hot, scale=0.1))


@pytest.mark.parametrize(("layers", "vocab", "hidden", "rate"), [(2, 20, 60, 0.0), (3, 300, 130, 0.4)])
def test_a_stack(layers, vocab, hidden, rate):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    weights = tuple(
        LSTMWeights(normal(hidden if n else vocab, 4 * hidden), normal(hidden, 4 * hidden), normal(4 * hidden))
        for n in range(layers)
    )
    ids = jnp.asarray(rng.integers(0, vocab, (3, 5)), jnp.int32)
    carry = tuple(LSTMCarry(normal(3, hidden), normal(3, hidden)) for _ in weights)
    keep = tuple(jnp.asarray(rng.random((3, 5, hidden)) > rate) for _ in weights[1:]) if rate else ()

    def gradients(run):
        def scalar(weights, carry):
            outputs = run(weights, carry)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), outputs

        return jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(weights, carry)

    found = gradients(lambda w, carry: run_stack(w, ids, carry, keep, jnp.float32(rate), jnp.dtype("float32")))
    right = gradients(lambda w, carry: lstm_stack(w, ids, carry, keep=keep, rate=rate, implementation="scan"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, right)


def test_summands_fill_the_device_and_divide_the_operand():
    few, many = (stack.Sizes(2, 100, batch, 512, 512) for batch in (64, 1024))
    assert (few.summands(1024, 2048), few.summands(2048, 1024)) == (4, 8)
    assert (many.summands(1024, 2048), many.summands(2048, 1024)) == (1, 1)
    assert stack.Sizes(1, 100, 1, 384, 384).summands(768, 4 * 384) == 6


def test_an_integer_out_of_range_gives_nan():
    run = functools.partial(lstm, implementation="interpreted")
    weights, x, carry = make_inputs(one_hot=True)
    y, _ = run(weights, x.at[0, 2].set(5).at[1, 0].set(200), carry)
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[2]).all()


def on_a_gpu(implementation, *, check_vma):
    """Lowers the gradient of a layer under shard_map for two GPUs."""
    mesh = jax.sharding.AbstractMesh((2,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=H100)

    def loss(weights, x, carry):
        y, after = lstm(weights, x, carry, implementation=implementation, dtype="bfloat16")
        return jnp.sum(y.astype(jnp.float32)) + jnp.sum(after.c)

    def step(weights, x, carry):
        return jax.lax.pmean(jax.grad(loss)(weights, x, carry), "data")

    specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec("data"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
    weights, x, carry = make_inputs((4, 5, 5, 6), one_hot=True)
    return jax.jit(mapped).trace(weights, x, carry).lower(lowering_platforms=("cuda",)).as_text()


def test_it_lowers_for_a_gpu_under_shard_map():
    # Two steps of an iteration and the remaining one, forward and backward.
    assert on_a_gpu("mosaic_gpu", check_vma=False).count("@mosaic_gpu_v2") == 6


def test_what_it_does_not_support_is_named(monkeypatch):
    with pytest.raises(NotImplementedError, match=r"needs check_vma=False in jax\.shard_map"):
        on_a_gpu("mosaic_gpu", check_vma=True)
    with pytest.raises(NotImplementedError, match="only Hopper GPUs, not 'cpu'"):
        lstm(*make_inputs(), implementation="mosaic_gpu")
    monkeypatch.setattr(stack, "OLDEST_JAX", (999,))
    with pytest.raises(NotImplementedError, match=r"needs JAX 0.11 or later, not \d"):
        on_a_gpu("mosaic_gpu", check_vma=False)
