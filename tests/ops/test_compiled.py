"""Bounds on what the GPU and TPU compilers make of the programs, and tests of the parser that reads it.

The compilers come with JAX's plug-ins: `pytest -m tpu_compiler` needs jax[tpu], `pytest -m gpu_compiler` jax[cuda13].
"""

import dataclasses
import importlib.util
import json

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import compiled, cost_model, program


def compiler(marker, module, package):
    """Returns a decorator for tests that need a compiler: slow, and skipped without the package."""
    skip = pytest.mark.skipif(not importlib.util.find_spec(module), reason=f"needs {package}")
    return lambda test: marker(pytest.mark.slow(skip(test)))


tpu_compiler = compiler(pytest.mark.tpu_compiler, "libtpu", "jax[tpu]")
gpu_compiler = compiler(pytest.mark.gpu_compiler, "jax_cuda13_plugin", "jax[cuda13]")

HLO = """
%condition.1 (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(100), metadata={op_name="while"}
  %n = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

%body.1 (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8]{0:T(128)} fusion(%x, %y), kind=kLoop, backend_config={"estimated_cycles":"30"}
  %b = (f32[8]{0:T(8,128)S(1)}, bf16[8], f32[8], f32[8], f32[8], /*index=5*/f32[8]) custom-call(%a)
  %view = f32[8] bitcast(%a)
  %sum = (f32[8], f32[8]) all-reduce-start(%a, %b), to_apply=%add
  %done = (f32[8], f32[8]) all-reduce-done(%sum)
}

%condition.2 (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[] get-tuple-element(%state), index=2
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

%body.2 (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %inner = (s32[], f32[8]) while(%state), condition=%condition.1, body=%body.1
  %known = (s32[]) while(%state), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"7"}}
  %c = f32[8] copy(%x), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%state), condition=%condition.2, body=%body.2
  %d = f32[] dot(%x, %y)
}
"""


def test_programs_are_parsed():
    whole = program.whole(HLO)
    assert whole.body == program.Counts(launches=1)
    (outer,) = whole.inner
    assert outer.trips is None
    assert [loop.trips for loop in outer.inner] == [100, 7]
    # Per iteration a fusion and a call with six results; a collective counts once per pair of start and done.
    assert outer.inner[0].body == program.Counts(launches=2, cycles=30, collectives=1)
    assert outer.one_trip() == program.Counts(launches=1 + 2 * 107, cycles=5 + 30 * 107, collectives=107)
    assert outer.collectives_inside() == 2
    with pytest.raises(ValueError, match="how often"):
        whole.one_trip()
    with pytest.raises(ValueError, match="ENTRY"):
        program.whole("nothing")


def test_the_cost_model_adds_launches_to_the_longer_of_work_and_traffic():
    sizes = {"hidden_dim": 512, "hidden_layers": 2, "batch_size": 64, "seq_len": 100}
    estimate = lambda **options: cost_model.training_seconds(  # noqa: E731
        dataclasses.replace(cost_model.H100, **options),
        launches_per_time_step=10,
        cycles=None,
        sizes=sizes,
        vocab_size=128,
    )
    launches = 10 * 100 * cost_model.H100.launch_seconds
    flops = cost_model.training_flops(512, 2, 128, 6400)
    assert flops == 3 * 6400 * (24 * 512**2 + 2 * 512 * 128)
    assert estimate(flops=1e12, efficiency=1.0) == pytest.approx(launches + flops / 1e12)
    weights, activations = cost_model.training_bytes(512, 2, 64, 100)
    assert weights == 200 * 3 * 512 * 2048 * 2
    assert estimate(memory=1e12, cache=2e12) == pytest.approx(launches + weights / 2e12 + activations / 1e12)
    assert estimate(memory=1e12, cache=2e12, cache_bytes=1e6) == pytest.approx(
        launches + (weights + activations) / 1e12
    )
    by_cycles = cost_model.training_seconds(
        cost_model.V5E, launches_per_time_step=10, cycles=3e6, sizes=sizes, vocab_size=128
    )
    assert by_cycles == pytest.approx(2e-3)


@tpu_compiler
def test_a_training_step_on_tpus(tmp_path, capsys):
    peers, streams = ["--peers", "default", "mosaic_tpu"], ["--streams", "1", "64"]
    compiled.main(["--target", "v5e:2x2", *peers, *streams, "--out", str(tmp_path)])
    assert "nothing ran" in capsys.readouterr().out
    result = json.loads(next(tmp_path.glob("compiled-v5e-2x2-*.json")).read_text())
    default, kernel, one, many = result["programs"]
    assert default["estimated_cycles"] <= 6e6
    assert kernel["estimated_cycles"] <= 4e6
    assert len(kernel["kernels"]) == 4
    for row in (default, kernel):
        assert row["collectives"] == 1
        assert row["collectives_inside_loops"] == 0
    # A matmul of one row stays in the matrix units.
    assert one["estimated_cycles"] < 20e3
    assert many["estimated_cycles"] < 40e3


@gpu_compiler
def test_a_training_step_on_an_h100():
    mesh = compiled.make_target_mesh("h100")
    ours = compiled.figures(compiled.compile_train_step(compiled.Sizes(), None, mesh), 100)
    flax = compiled.figures(compiled.compile_flax_step(compiled.Sizes(), mesh), 100)
    assert ours["launches_per_time_step"] <= 8
    assert ours["temporary_bytes"] <= flax["temporary_bytes"] / 2


@gpu_compiler
@pytest.mark.parametrize("batch_size", [64, 1024])
def test_a_step_with_kernels_on_an_h100(batch_size):
    mesh = compiled.make_target_mesh("h100")
    sizes = compiled.Sizes(batch_size=batch_size)
    found = compiled.figures(compiled.compile_train_step(sizes, "mosaic_gpu", mesh), 100)
    # Per time step, forward and backward: a matmul and a kernel. All else is outside the loops.
    assert found["launches_per_time_step"] <= 4 * 1.01 + 1.3


@gpu_compiler
def test_generation_on_an_h100():
    mesh = compiled.make_target_mesh("h100")
    for batch_size in (1, 64):
        loop = compiled.compile_generation(compiled.Sizes(batch_size=batch_size), mesh)
        assert compiled.figures(loop, compiled.BLOCK)["launches_per_time_step"] <= 5 + 5 / compiled.BLOCK


@gpu_compiler
@pytest.mark.parametrize(
    ("options", "once_a_block"), [({"batch_size": 1}, 5), ({}, 4), ({"batch_size": 1024}, 4), ({"hidden_dim": 100}, 4)]
)
def test_generation_with_a_kernel_on_an_h100(options, once_a_block):
    mesh = compiled.make_target_mesh("h100")
    loop = compiled.compile_generation(compiled.Sizes(**options), mesh, "mosaic_gpu")
    # Per character: the kernel, a matmul, layer 1's gates, a matmul. Per block of characters: its keys, its noise,
    # storing the ids, the loop's counter, and for a single sequence the last matmul in two parts.
    assert compiled.figures(loop, compiled.BLOCK)["launches_per_time_step"] <= 4 + once_a_block / compiled.BLOCK


@gpu_compiler
def test_the_default_follows_the_devices_compiled_for():
    mesh = compiled.make_target_mesh("h100")
    sizes = compiled.Sizes(hidden_dim=128, batch_size=8, seq_len=20)
    default, wavefront = (compiled.compile_train_step(sizes, name, mesh) for name in (None, "wavefront"))
    assert compiled.figures(default, 20) == compiled.figures(wavefront, 20)
    assert jax.default_backend() == "cpu"
    assert NamedSharding(mesh, PartitionSpec()).device_set != set(jax.devices())
