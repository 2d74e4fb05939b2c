"""`python -m benchmarks.generation`: rehearsed whole, what it counts, and what it does not let pass."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.generation import bandwidth, jax_side, problem, report
from benchmarks.generation.__main__ import text_length
from benchmarks.generation.measure import FORCED_STREAMS, check
from benchmarks.generation.worker import Worker

SIZES = {"hidden_dim": 8, "hidden_layers": 2, "streams": 64}
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")


def rehearse(root, tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generation", "--tiny", "--out", str(tmp_path), *arguments],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {path.stem.split("-")[-1]: json.loads(path.read_text()) for path in tmp_path.glob("generation-*.json")}, done


def test_rehearsed_whole(root, tmp_path):
    written, done = rehearse(root, tmp_path)
    assert set(written) == {"float32"}
    content = written["float32"]
    assert {"date", "command", "machine", "dtype", "peak_gflops", "rounds", "summary", "rows"} <= content.keys()
    (row,) = content["rows"]
    able = {name for name, result in row["peers"].items() if "cannot_run" not in result}
    assert able == {"charjax float32", "flax float32"} | ({"torch loop float32"} if HAS_TORCH else set())
    for name in able:
        result = row["peers"][name]
        assert len(result["text_seconds"]) == len(result["first_seconds"]) == 1, name
        assert result["logits_difference"] < 1e-4, name
    assert row["limits"]["float32"]["step_bytes"] == problem.step_bytes(row["sizes"], "float32")
    assert "| charjax / better torch |" in done.stdout


@needs_torch
@pytest.mark.slow
def test_compiled_by_pytorch(root, tmp_path):
    written, _ = rehearse(root, tmp_path, "--peers", "torch compiled", "--dtypes", "float32", "bfloat16")
    for dtype, content in written.items():
        result = content["rows"][0]["peers"][f"torch compiled {dtype}"]
        assert {trial["steps_per_call"] for trial in result["tried"]} == {1, 8}
        assert all(trial["compile_seconds"] > 0 for trial in result["tried"])


def test_bytes_are_those_of_the_weights():
    params = problem.parameters(SIZES)
    multiplied = [params["layer_0"]["cell"]["w_hh"], *(params["layer_1"]["cell"][name] for name in ("w_ih", "w_hh"))]
    numbers = sum(array.size for array in multiplied) + params["head"]["kernel"].size
    assert problem.products(SIZES) == numbers
    assert problem.step_flops(SIZES) == 2 * 64 * numbers
    assert problem.step_bytes(SIZES, "bfloat16") == 2 * (numbers + 64 * 32)
    # As many rows as there are characters, however many streams.
    assert problem.step_bytes({**SIZES, "streams": 1000}, "float32") == 4 * (numbers + 128 * 32)


def test_a_text_has_whole_calls_of_steps():
    assert [text_length(streams) for streams in (1, 32, 1024)] == [2049, 257, 49]


@needs_compiler
def test_the_weights_are_read_no_faster_than_possible(tmp_path):
    program = bandwidth.build(tmp_path)
    found = bandwidth.measure(program, 100_000, 0.01)
    assert 0.01 < found["gigabytes_per_second"]["1"] < 2000
    assert found["seconds"] == pytest.approx(1e-4 / found["gigabytes_per_second"][str(found["threads"])])
    # Ten times the bytes, in about ten times the time: no pass was left out.
    assert bandwidth.measure(program, 1_000_000, 0.01)["seconds"] > 3 * found["seconds"]


def test_without_a_compiler_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(bandwidth.shutil, "which", lambda name: None)
    assert bandwidth.build(tmp_path) is None


def peers(**rates):
    return {name.replace("_", " "): {"characters_per_second": r, "median": sorted(r)[1]} for name, r in rates.items()}


def row(**rates):
    rounds = [{"seconds": seconds, "threads": 2, "gigabytes_per_second": {"2": 1.0}} for seconds in (1.0, 2.0, 4.0)]
    limits = {"float32": {"step_bytes": 8, "rounds": rounds}}
    return {"sizes": SIZES, "peers": {**peers(**rates), "torch loop float32": {"cannot_run": "why"}}, "limits": limits}


def test_ratios_are_of_the_rounds_and_against_the_better_torch():
    found = row(charjax_float32=[32.0, 32, 8], torch_loop_bfloat16=[8.0, 4, 2], torch_compiled_float32=[9.0, 3, 3])
    assert report.better_torch(found) == "torch loop bfloat16"
    assert report.ratio(found, "charjax float32", "torch loop bfloat16") == (4, 4, 8)
    assert report.ratio(found, "charjax float32", "flax float32") is None
    assert report.limit(found, "float32") == [64, 32, 16]
    assert report.of_limit(found, "float32") == (0.5, 0.5, 1)
    assert report.summary([found], "float32") == {
        "charjax / better torch": {"geometric_mean": pytest.approx(4), "least": 4, "points": 1}
    }


class Judge:
    """What `check` asks of a process, here of this one."""

    def ask(self, do, **request):
        return getattr(jax_side, do)(**request)


class Peer:
    """A peer that draws from the model at a temperature."""

    name, dtype = "a peer", "float32"

    def __init__(self, temperature=1.0, *, logits=0.0, same=False):
        self.temperature, self.shift, self.same = temperature, logits, same

    def ask(self, do, **request):
        if do == "logits":
            return {"logits": (np.asarray(jax_side.reference(SIZES, request["ids"])["logits"]) + self.shift).tolist()}
        import jax

        import charjax

        model = charjax.CharLSTM(128, hidden_dim=8, hidden_layers=2)
        context = problem.text(SIZES["streams"], problem.CONTEXT)
        ids = charjax.generate(
            model, problem.parameters(SIZES), context,
            key=jax.random.key(0), length=30, temperature=self.temperature,
        )  # fmt: skip
        return {"ids": np.asarray(ids[:1].repeat(len(ids), 0) if self.same else ids).tolist()}


def test_only_the_model_passes():
    told = check(Peer(), Judge(), SIZES)
    assert told["logits_difference"] == 0
    assert abs(told["excess"]) < 5 * told["deviation"]
    assert told["entropy"] < 4.5  # all characters alike: 4.85
    with pytest.raises(SystemExit, match="logits differ"):
        check(Peer(logits=0.01), Judge(), SIZES)
    with pytest.raises(SystemExit, match="not drawn from the model"):
        check(Peer(1.25), Judge(), SIZES)
    with pytest.raises(SystemExit, match=r"same text|not drawn"):
        check(Peer(same=True), Judge(), SIZES)


@needs_torch
@pytest.mark.parametrize("name", ["lstm", "cells", "hand"])
def test_every_way_of_pytorch_computes_the_model(name):
    import torch

    from benchmarks.generation import torch_side

    # PyTorch reads a context in bfloat16 only where the processor has instructions for it.
    dtype = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    for network, context, autocast in torch_side._networks(SIZES, dtype):
        loop = torch_side.Loop(network, context, name, 1, torch_side.by_gumbel, autocast=autocast)
        forced = problem.text(FORCED_STREAMS, problem.FORCED)
        expected = np.asarray(jax_side.reference(SIZES, forced.tolist())["logits"])
        np.testing.assert_allclose(loop.logits(forced), expected, atol=0.1)
        assert loop.draw(20, 0).shape == (64, 20)


@needs_torch
@pytest.mark.parametrize("way", ["by_multinomial", "by_exponentials", "by_gumbel"])
def test_every_way_to_draw_draws_from_the_softmax(way):
    import torch

    from benchmarks.generation import torch_side

    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20_000, 4)
    drawn = np.bincount(getattr(torch_side, way)(logits).numpy(), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, torch.softmax(logits[0], -1).numpy(), atol=0.015)


def test_a_peer_that_ends_is_told_of(tmp_path):
    worker = Worker("charjax", "float32", tmp_path)
    assert worker.ask(do="nothing such")["cannot_run"].startswith("AttributeError")
    worker._process.kill()
    assert worker.ask(do="peak")["cannot_run"].startswith("ended with -9")
    worker.close()
