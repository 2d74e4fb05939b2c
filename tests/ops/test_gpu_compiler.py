"""GPU kernels compiled by NVIDIA's assembler for an H100, on a machine without one: pytest -m gpu_compiler.

Needs jax[cuda12], whose plug-in has the compiler, but no driver. Nothing runs.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import compiled
from benchmarks.targets import make_target_mesh
from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.ops.lstm.api import lstm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu_compiler,
    pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs jax[cuda12]"),
]

SHARED_MEMORY = 232_448  # bytes that a thread block of an H100 may request


@pytest.fixture
def h100():
    """Returns a mesh of one H100 to compile for."""
    yield make_target_mesh("h100")
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("hidden", [128, 256, 512])
def test_the_lstm_kernels_fit_and_spill_nothing(h100, hidden, tmp_path, monkeypatch):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    for what in ("PTX", "PTXAS", "MLIR_PASSES"):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{what}", "1")

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(h100, PartitionSpec()))

    def loss(weights, x, carry):
        y, after = lstm(weights, x, carry, implementation="mosaic_gpu", dtype="bfloat16")
        return jnp.sum(y.astype(jnp.float32) ** 2) + jnp.sum(after.c * after.h)

    weights = LSTMWeights(array(5, 4 * hidden), array(hidden, 4 * hidden), array(4 * hidden))
    carry = LSTMCarry(array(40, hidden), array(40, hidden))
    with jax.set_mesh(h100):
        jax.jit(jax.grad(loss)).lower(weights, array(40, 3, 5), carry).compile()
    for direction in ("forward", "backward"):
        log = next(tmp_path.glob(f"lstm_{direction}*.ptxas")).read_text()
        assert "for 'sm_90a'" in log
        assert "0 bytes spill stores, 0 bytes spill loads" in log
        assert "wgmma" not in log, "the assembler serialized the matmuls"
        passes = next(tmp_path.glob(f"lstm_{direction}*.mlir-passes.log")).read_text()
        bytes_used = [int(size) for size in re.findall(r"dynamic_shared_memory_size %c(\d+)_i32", passes)]
        assert 0 < max(bytes_used) <= SHARED_MEMORY


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
