"""The real benchmarks with tiny sizes, their peers in processes of their own; started by hand: pytest -m slow."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import chromium

from benchmarks.common import problem
from benchmarks.gpu import report
from benchmarks.gpu.__main__ import STAGES
from benchmarks.gpu.diagnosis import VARIANTS
from benchmarks.peers import jax_generation

pytestmark = pytest.mark.slow
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
SIZES = {"hidden_dim": 8, "hidden_layers": 2, "streams": 64}
FIT = ["--hidden-dim", "8", "--hidden-layers", "1", "--batch-size", "8", "--seq-len", "16", "--every", "5"]


@pytest.fixture
def rehearse(root, tmp_path):
    def run(benchmark, *arguments, results="--results"):
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments, results, str(tmp_path)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob(f"{benchmark}-*.json")}
        assert all({"date", "command", "machine"} <= content.keys() for content in written.values())
        return written, done.stdout

    return run


def test_the_training_step(rehearse):
    peers = ["flax", "lax.scan", "torch"]
    sizes = ["--hidden-dim", "8", "--hidden-layers", "2", "--batch-size", "8", "--dtypes", "float32", "--rounds", "1"]
    written, out = rehearse("train_step", *sizes, "--peers", *peers)
    (content,) = written.values()
    assert {"peak_gflops", "summary", "rows"} <= content.keys()
    measured = content["rows"][0]["peers"]
    assert set(measured) == {"charjax", *peers}
    assert [peer for peer in measured if "cannot_run" in measured[peer]] == ([] if HAS_TORCH else ["torch"])
    assert measured["charjax"]["peak_megabytes"] > 0
    assert (content["rows"][0]["losses_agree"] is not None) == HAS_TORCH
    assert "torch / charjax" in out


def test_generation(rehearse):
    written, out = rehearse("generation", "--tiny", "--seconds", "0.3", results="--out")
    (content,) = written.values()
    assert content["dtype"] == "float32"
    assert {"peak_gflops", "rounds", "summary", "rows"} <= content.keys()
    (row,) = content["rows"]
    able = {name for name, result in row["peers"].items() if "cannot_run" not in result}
    assert able == {"charjax float32", "flax float32"} | ({"torch loop float32"} if HAS_TORCH else set())
    for name in able:
        result = row["peers"][name]
        assert len(result["text_seconds"]) == len(result["first_seconds"]) == 1, name
        assert result["logits_difference"] < 1e-4, name
    assert row["limits"]["float32"]["step_bytes"] == problem.step_bytes(row["sizes"], "float32")
    assert "charjax / better torch" in out


@needs_torch
def test_generation_compiled_by_pytorch(rehearse):
    from benchmarks.peers.torch_generation import MOST_TO_UNROLL, UNROLLED

    arguments = ("--tiny", "--peers", "torch compiled", "--dtypes", "float32", "bfloat16", "int8")
    written, _ = rehearse("generation", *arguments, "--seconds", "0.3", results="--out")
    assert {content["dtype"] for content in written.values()} == {"float32", "bfloat16", "int8"}
    for content in written.values():
        for dtype in ("float32", "bfloat16"):
            tried = content["rows"][0]["peers"][f"torch compiled {dtype}"]["tried"]
            unrolled = [UNROLLED] if tried[1]["seconds_per_step"] < MOST_TO_UNROLL else []
            assert [trial["steps_per_call"] for trial in tried] == [1, 1, *unrolled]
            assert all(trial["compile_seconds"] > 0 for trial in tried)


def test_every_stage_on_an_accelerator(rehearse):
    written, out = rehearse("gpu", "--tiny", "--seconds", "3600")
    (content,) = written.values()
    assert {"about", "nvidia_smi", "nvidia_smi_after", "summary"} <= content.keys()
    assert set(content["stages"]) == set(STAGES)
    assert not any(stage["not_run"] or "failed" in stage for stage in content["stages"].values())
    assert all(row["agrees"] for row in content["stages"]["sampling"]["rows"])
    assert {row["variant"] for row in content["stages"]["variants"]["rows"]} == set(VARIANTS)
    assert all(
        result["median_seconds"] > 0
        for row in content["stages"]["variants"]["rows"]
        for result in row["peers"].values()
    )
    (training,) = content["stages"]["training"]["rows"]
    assert training["evaluations"][-1][3] < training["evaluations"][0][3]
    (limits,) = content["stages"]["limits"]["rows"]
    assert min(limits["matmul_flops"], limits["copy_bytes"]) > 0
    checks = content["stages"]["correctness"]["rows"]
    assert {check["implementation"] for check in checks} == set(content["about"]["jax"]["implementations"])
    assert all(check["agrees"] for check in checks if "outputs" in check)
    assert {check["implementation"] for check in checks if check.get("refused")} >= {"cudnn", "mosaic_gpu"}
    assert {"charjax", "charjax float32", "recompute bfloat16", "scan bfloat16", "flax nn.RNN bfloat16"} <= {
        peer for row in content["stages"]["train_step_peers"]["rows"] for peer in row["peers"]
    }
    for stage in ("train_step", "train_step_rest", "generation"):
        for row in content["stages"][stage]["rows"]:
            assert all(result["median_seconds"] > 0 for result in row["peers"].values()), row
            assert bool(report.torch_names(row)) == HAS_TORCH
    for row in report.training_rows(content) + report.rows(content, "train_step_peers"):
        assert all(result.get("losses_agree", True) for result in row["peers"].values())
    assert ("torch / charjax, training step" in content["summary"]) == HAS_TORCH
    assert "Generation, characters/s" in out


def test_first_contact_in_phases(root, tmp_path):
    script = root / "benchmarks" / "gpu" / "first_contact.sh"
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = ["bash", script, tmp_path, "--tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("gpu-*.json"))]
    assert len(written) == 4
    stages = [name for content in written for name in content["stages"]]
    assert sorted(stages) == sorted(set(STAGES) - {"train_step_peers", "train_step_rest"})


def test_first_contact_goes_on_after_a_phase_that_fails(root, tmp_path):
    script = root / "benchmarks" / "gpu" / "first_contact.sh"
    command = ["bash", script, tmp_path, "--tiny"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": "false"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.count(" failed\n") == 4


@pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium")
def test_page(rehearse):
    written, out = rehearse("page", "--hidden-dim=8", "--hidden-layers=1", "--length=50", "--rounds=2")
    (content,) = written.values()
    assert len(content["chars_per_second"]) == 2
    assert "Chrome" in content["browser"]
    assert "characters/s" in out


def test_saving(rehearse):
    written, _ = rehearse("saving", *FIT, "--rounds", "2")
    (content,) = written.values()
    assert [set(seconds) for seconds in content["seconds"]] == [{"saving", "without"}] * 2
    assert set(content["speed_saving_to_without"]) == {"median", "least", "most"}
    assert content["checkpoint_megabytes"] > 0


def test_a_training_that_ends_stops_the_benchmark(tmp_path, root):
    command = [sys.executable, "-m", "benchmarks.saving", "--text", str(tmp_path / "nowhere.txt")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("the training 'without' ended: ")
    assert "nowhere.txt does not exist" in last


def test_streaming(rehearse):
    written, _ = rehearse("streaming", *FIT, "--rounds", "1")
    (content,) = written.values()
    assert content["speed_from_file_to_memory"]["median"] > 0


def test_the_speedrun(rehearse, tmp_path):
    (tmp_path / "text.txt").write_bytes(problem.TEXT.read_bytes()[:6000])
    data = tmp_path / "nanoGPT" / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    (data / "prepare.py").write_text("import requests; open('train.bin', 'wb').write(open('input.txt', 'rb').read())")
    train = "import os\nfor step in range(2): print(f'step {step}: train loss 4.2, val loss {4 - step}')\n"
    (data.parents[1] / "train.py").write_text(
        f"{train}assert os.path.getsize('data/shakespeare_char/train.bin') == 6000\n"
    )
    flags = [
        "--tiny",
        "--text",
        str(tmp_path / "text.txt"),
        "--seeds",
        "0",
        "1",
        "--nanogpt",
        str(tmp_path / "nanoGPT"),
    ]
    written, out = rehearse("speedrun", *flags, *([] if HAS_TORCH else ["--alone"]))
    (content,) = written.values()
    assert content["text_bytes"] == 6000
    assert [row[1:] for row in content["nanogpt"]] == [[0, 4.0], [1, 3.0]]
    (row,) = content["rows"]
    assert row["nanogpt_loss"] == 3.0
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    assert {"float32 default", "float32 passive"} <= row["torch_step_seconds"].keys() or not HAS_TORCH
    for run in row["runs"]:
        assert run.keys() == {"seed", "charjax"} | ({"torch"} if HAS_TORCH else set())
        for result in (run["charjax"], *([run["torch"]] if HAS_TORCH else [])):
            assert 0 < result["seconds"] <= result["whole_seconds"]
            assert result["evaluations"][-1][1] == 136
            # The exact loss, measured again, is that of the best evaluation, up to the format of the products.
            best = min(loss for _, _, loss in result["evaluations"])
            assert result["carried"] == pytest.approx(best, abs=2e-2)
            assert result["windows"] > 0
        assert run["charjax"]["compile_seconds"] > 0
    first, second = (run["charjax"]["evaluations"] for run in row["runs"])
    assert first[0][2] != second[0][2]
    assert "time ratio" in out


def test_devices(rehearse):
    written, _ = rehearse("devices", *FIT, "--rounds", "1")
    (content,) = written.values()
    assert content["all_cores_to_a_core"] > 0
    assert content["weak_to_one_device"].keys() == {"1 devices", "2 devices", "4 devices", "8 devices"}


@pytest.mark.parametrize("ways", [["--rounds", "1"], ["--commands"]], ids=["functions", "commands"])
def test_sweep(rehearse, ways):
    sizes = ["--characters", "9000", "--hidden-dim", "8", "--batch-size", "8", *ways]
    written, out = rehearse("sweep", *sizes)
    (content,) = written.values()
    assert content["together"]["seconds"] > 0
    assert len(content["in_turn"]["losses"]) == 12
    assert content["summary"]["largest_difference"] < 1e-5
    assert "times as fast as in turn" in out


def test_scaling(rehearse):
    written, _ = rehearse("scaling", "--quick")
    (content,) = written.values()
    assert all(row["chars_per_second"] > 0 for row in content["rows"])
    assert [row["devices"] for row in content["rows"] if row["axis"] == "devices"] == [1, 2]
    assert [row["megabytes"] for row in content["loading"]] == [1, 10]


@needs_torch
@pytest.mark.parametrize("name", ["lstm", "cells", "hand"])
def test_every_way_of_pytorch_computes_the_model(name):
    import torch

    from benchmarks.generation import FORCED_TEXTS
    from benchmarks.peers import torch_generation

    # PyTorch reads a context in bfloat16 only where the CPU has instructions for it.
    dtype = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    for network, context, autocast in torch_generation.networks(SIZES, dtype):
        loop = torch_generation.Loop(network, context, name, 1, torch_generation.by_gumbel, autocast=autocast)
        forced = problem.text(FORCED_TEXTS, problem.FORCED)
        expected = np.asarray(jax_generation.reference(SIZES, forced.tolist())["logits"])
        np.testing.assert_allclose(loop.logits(forced), expected, atol=0.1)
        assert loop.sample(20, 0).shape == (64, 20)


@needs_torch
@pytest.mark.parametrize("way", ["by_multinomial", "by_exponentials", "by_gumbel"])
def test_every_way_to_sample_samples_from_the_softmax(way):
    import torch

    from benchmarks.peers import torch_generation

    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20_000, 4)
    sampled = np.bincount(getattr(torch_generation, way)(logits).numpy(), minlength=4) / 20_000
    np.testing.assert_allclose(sampled, torch.softmax(logits[0], -1).numpy(), atol=0.015)


def test_quality(rehearse, root, tmp_path):
    text, run = root / "data_files" / "coffee.txt", tmp_path / "run"
    options = ["--hidden-dim", "8", "--hidden-layers", "1", "--epochs", "1", "--sample-length", "0"]
    train = [sys.executable, "-m", "charjax", "train", str(text), "--out", str(run), *options]
    subprocess.run(train, cwd=root, capture_output=True, check=True)
    sizes = ["--samples", "4", "--length", "60"]
    written, out = rehearse("quality", str(text), "--runs", str(run), "--judge", str(run), *sizes)
    (content,) = written.values()
    assert set(content["rows"]) == {"validation text", "run"}
    assert content["rows"]["validation text"]["known_words"] > content["rows"]["run"]["known_words"]
    assert all(row["judge_nats"] > 0 for row in content["rows"].values())
    assert "| validation text |" in out
