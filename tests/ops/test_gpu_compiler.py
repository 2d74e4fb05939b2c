"""GPU kernels compiled by NVIDIA's assembler for an H100, on a machine without one: pytest -m gpu_compiler.

Needs JAX 0.11 and jax[cuda13], whose plug-in has the compiler, but no driver. Nothing runs.
"""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import compiled
from benchmarks.targets import make_target_mesh
from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import lstm_stack
from charjax.ops.lstm.experimental.mosaic_gpu import stack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu_compiler,
    pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs jax[cuda13]"),
]


@pytest.fixture
def h100():
    """Returns a mesh of one H100 to compile for."""
    yield make_target_mesh("h100")
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(("hidden", "dtype"), [(100, "bfloat16"), (512, "bfloat16"), (512, "float32")])
def test_the_step_kernels_spill_nothing(h100, hidden, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    for what in ("PTX", "PTXAS"):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{what}", "1")
    monkeypatch.setattr(stack, "UNROLL", 1)

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(h100, PartitionSpec()))

    def loss(weights, x, carry, keep):
        y, after = lstm_stack(weights, x, carry, keep=keep, rate=0.5, implementation="mosaic_gpu", dtype=dtype)
        return jnp.sum(y.astype(jnp.float32) ** 2) + sum(jnp.sum(layer.c * layer.h) for layer in after)

    weights = [LSTMWeights(array(n, 4 * hidden), array(hidden, 4 * hidden), array(4 * hidden)) for n in (65, hidden)]
    carry = [LSTMCarry(array(40, hidden), array(40, hidden)) for _ in weights]
    arguments = weights, array(40, 3, dtype=jnp.int32), carry, [array(40, 3, hidden, dtype=bool)]
    with jax.set_mesh(h100):
        jax.jit(jax.grad(loss)).lower(*arguments).compile()
    logs = [path.read_text() for path in tmp_path.glob("*.ptxas")]
    assert len(logs) >= 2
    for log in logs:
        assert "for 'sm_90a'" in log
        assert "0 bytes spill stores, 0 bytes spill loads" in log


# Sizes that no other test uses: a program is compiled only once per process.
@pytest.mark.parametrize(("batch", "hidden"), [(3, 512), (1025, 100)])
def test_the_sampling_kernel_spills_nothing(h100, batch, hidden, tmp_path, monkeypatch):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    for what in ("PTX", "PTXAS"):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{what}", "1")
    compiled.compile_generation(compiled.Sizes(batch_size=batch, hidden_dim=hidden), h100, "mosaic_gpu")
    log = next(tmp_path.glob("sample_step*.ptxas")).read_text()
    assert "for 'sm_90a'" in log
    assert "0 bytes spill stores, 0 bytes spill loads" in log
