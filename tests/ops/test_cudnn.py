"""The "cudnn" implementation, with cuDNN itself replaced by JAX's own reference on the CPU.

The tests cover the order of weights, states and gates, integers, shard_map, and what is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import check, make_inputs
from jax.experimental import rnn
from jax.interpreters import mlir
from jax.sharding import PartitionSpec

from charjax.distributed.mesh import make_mesh
from charjax.ops.lstm.api import lstm
from charjax.ops.lstm.experimental import cudnn

pytestmark = pytest.mark.slow

SETTINGS = []


def compute(x, h, c, flat, input_size, hidden_size):
    lengths = jnp.full(x.shape[0], x.shape[1], jnp.int32)
    parts = rnn.unpack_lstm_weights(flat, input_size, hidden_size, 1, False)
    return rnn.lstm_ref(x, h, c, *parts, lengths, input_size, hidden_size, 1, 0.0, False)


def forward(x, h, c, flat, lengths, *, input_size, hidden_size, **setting):
    del lengths
    SETTINGS.append(setting)
    return (*compute(x, h, c, flat, input_size, hidden_size), jnp.zeros(1))


def backward(dy, dh, dc, x, h, c, flat, y, reserved, lengths, *, input_size, hidden_size, **setting):
    del y, reserved, lengths, setting
    return jax.vjp(lambda *inputs: compute(*inputs, input_size, hidden_size), x, h, c, flat)[1]((dy, dh, dc))


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes the CPU look like a GPU with cuDNN."""
    monkeypatch.setattr(cudnn, "target_platform", lambda: "gpu")
    sizes = lambda *_: (1, 1)  # noqa: E731
    monkeypatch.setattr(rnn.gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", sizes, raising=False)
    mlir.register_lowering(rnn.rnn_fwd_p, mlir.lower_fun(forward, multiple_results=True), platform="cpu")
    mlir.register_lowering(rnn.rnn_bwd_p, mlir.lower_fun(backward, multiple_results=True), platform="cpu")
    SETTINGS.clear()


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("size", ["odd", "one", "tiles"])
def test_outputs_and_gradients(on_gpu, size, one_hot):
    check("cudnn", "float32", make_inputs(size, one_hot))


def test_gradients_over_several_devices(on_gpu):
    weights, x, carry = make_inputs()
    x, carry = jax.tree.map(lambda a: jnp.concatenate([a, -a]), (x, carry))
    replicated, split = PartitionSpec(), PartitionSpec("data")

    def grads(implementation):
        def total(weights, x, carry):
            y, after = lstm(weights, x, carry, implementation=implementation)
            return jnp.sum(jnp.sin(y)) + jnp.sum(after.c) + jnp.sum(jnp.cos(after.h))

        mapped = jax.shard_map(
            jax.grad(total, argnums=(0, 1, 2)),
            mesh=make_mesh(jax.devices()[:2]),
            in_specs=(replicated, split, split),
            out_specs=(replicated, split, split),
        )
        return jax.tree.leaves(jax.jit(mapped)(weights, x, carry))

    for actual, expected in zip(grads("cudnn"), grads("flax"), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [5, 200])
def test_an_integer_out_of_range_gives_nan(on_gpu, wrong):
    weights, x, carry = make_inputs(one_hot=True)
    y, _ = lstm(weights, x.at[0, 2].set(wrong), carry, implementation="cudnn")
    assert np.isfinite(y[0, :2]).all()
    assert np.isnan(y[0, 2:]).all()
    assert np.isfinite(y[1:]).all()


def test_no_steps_change_nothing(on_gpu):
    weights, x, carry = make_inputs()
    y, after = lstm(weights, x[:, :0], carry, implementation="cudnn")
    assert y.shape == (3, 0, 6)
    assert after.c is carry.c
    assert after.h is carry.h


@pytest.mark.parametrize(("precision", "tf32"), [(None, False), ("highest", False), ("tensorfloat32", True)])
def test_matmuls_are_float32_unless_set_otherwise(on_gpu, precision, tf32):
    with jax.default_matmul_precision(precision):
        lstm(*make_inputs("one"), implementation="cudnn")
    assert [setting["cudnn_allow_tf32"] for setting in SETTINGS] == [tf32]


def test_what_it_does_not_support_is_named(on_gpu):
    weights, x, carry = make_inputs()
    with pytest.raises(NotImplementedError, match="only float32, not bfloat16"):
        lstm(weights, x, carry, implementation="cudnn", dtype="bfloat16")
    with pytest.raises(NotImplementedError, match="needs at least one input"):
        lstm(weights._replace(w_ih=weights.w_ih[:0]), x[..., :0], carry, implementation="cudnn")


def test_a_jaxlib_without_cudnn_is_reported(monkeypatch):
    monkeypatch.setattr(cudnn, "target_platform", lambda: "gpu")
    with pytest.raises(NotImplementedError, match="no cuDNN"):
        # A size of its own: JAX caches what it has traced.
        lstm(*make_inputs("wide"), implementation="cudnn")
