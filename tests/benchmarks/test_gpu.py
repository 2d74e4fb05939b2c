"""`python -m benchmarks.gpu`: rehearsed whole, cut short, and with peers that fail, crash and hang."""

import importlib.util
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.lstm_reference import lstm_float64, lstm_gradients_float64, numerical_gradient
from rich.console import Console

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu import report
from benchmarks.gpu.plan import Clock, Size, tiny_plan, whole_plan
from benchmarks.gpu.results import Results
from benchmarks.gpu.run import Peer, Run
from benchmarks.gpu.train_step import OURS, against_everyone, against_torch
from benchmarks.gpu.worker import Worker

HAS_TORCH = importlib.util.find_spec("torch") is not None


def rehearse(tmp_path, capsys, *arguments):
    code = gpu.main(["--tiny", "--results", str(tmp_path), *arguments])
    (path,) = tmp_path.glob("gpu-*-cpu.json")
    return code, json.loads(path.read_text()), capsys.readouterr().out


def test_every_stage_rehearsed(tmp_path, capsys):
    code, content, out = rehearse(tmp_path, capsys)
    assert code == 0
    assert {"date", "command", "machine", "about", "nvidia_smi", "nvidia_smi_after", "summary"} <= content.keys()
    assert set(content["stages"]) == {name for name, _, _ in gpu.STAGES}
    assert not any(stage["not_run"] or "failed" in stage for stage in content["stages"].values())
    checks = content["stages"]["correctness"]["rows"]
    assert {check["implementation"] for check in checks} == set(content["about"]["jax"]["implementations"])
    assert all(check["agrees"] for check in checks if "outputs" in check)
    assert {check["implementation"] for check in checks if "does_not_serve" in check} >= {"cudnn", "mosaic_gpu"}
    assert {"charjax", "charjax float32", "recompute bfloat16", "scan bfloat16", "flax nn.RNN bfloat16"} <= {
        peer for row in content["stages"]["train_step_peers"]["rows"] for peer in row["peers"]
    }
    check_rows(content, ("train_step", "train_step_rest", "generation"), torch=HAS_TORCH)
    for row in report.training_rows(content) + report.rows(content, "train_step_peers"):
        assert all(result.get("losses_agree", True) for result in row["peers"].values())
    assert ("torch / charjax, training step" in content["summary"]) == HAS_TORCH
    assert "Largest error against float64" in out
    assert "Generation, characters/s" in out


def test_without_pytorch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "STAGES", tuple(stage for stage in gpu.STAGES if stage[0] == "generation"))
    code, content, out = rehearse(tmp_path, capsys, "--without-torch")
    assert code == 0
    check_rows(content, ("generation",), torch=False)
    assert "Generation, characters/s" in out


def check_rows(content, stages, *, torch):
    for stage in stages:
        for row in content["stages"][stage]["rows"]:
            assert all(result["median_seconds"] > 0 for result in row["peers"].values()), row
            assert any(name.startswith("torch") for name in row["peers"]) == torch
            assert (report.torch_ratio(row) is not None) == torch


def test_a_stage_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    def good(run, share):
        run.results.stage("good")["rows"].append({"number": 1})
        run.results.save()

    def bad(run, share):
        assert json.loads(run.results.path.read_text())["stages"]["good"]["rows"] == [{"number": 1}]
        raise ZeroDivisionError("a stage with an error in it")

    def after(run, share):
        run.results.stage("after")["rows"].append({"number": 2})

    monkeypatch.setattr(gpu, "STAGES", (("good", good, 0.3), ("bad", bad, 0.6), ("after", after, 1.0)))
    code, content, out = rehearse(tmp_path, capsys, "--without-torch")
    assert code == 1
    assert content["stages"]["good"]["rows"] == [{"number": 1}]
    assert content["stages"]["bad"]["failed"] == "ZeroDivisionError: a stage with an error in it"
    assert content["stages"]["after"]["rows"] == [{"number": 2}]
    assert "bad FAILED: ZeroDivisionError" in out


def test_an_interrupted_run_leaves_what_it_has(tmp_path, capsys, monkeypatch):
    def good(run, share):
        run.results.stage("good")["rows"].append({"number": 1})

    def interrupted(run, share):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "STAGES", (("good", good, 0.5), ("interrupted", interrupted, 1.0)))
    with pytest.raises(KeyboardInterrupt):
        rehearse(tmp_path, capsys, "--without-torch")
    (path,) = tmp_path.glob("gpu-*.json")
    assert json.loads(path.read_text())["stages"]["good"]["rows"] == [{"number": 1}]


def test_what_there_is_no_time_for_is_listed(tmp_path, capsys):
    code, content, out = rehearse(tmp_path, capsys, "--without-torch", "--seconds", "0.001")
    assert code == 0
    assert content["stages"]["train_step"]["not_run"] == [Size(8, 2, 8)._asdict()]
    assert len(content["stages"]["generation"]["not_run"]) == 4
    assert "train_step: 1 points not run" in out


def test_a_processor_is_told_to_rehearse(tmp_path):
    with pytest.raises(SystemExit, match="--tiny rehearses"):
        gpu.main(["--without-torch", "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_worker_that_hangs_or_crashes_is_replaced(tmp_path):
    worker = Worker("jax", tmp_path)
    hung = worker.ask(0.01, do="describe")
    assert hung == {"failed": "no answer within 0 s", "ended": True, "hung": True}
    assert worker.ask(60.0, do="describe")["platform"] == "cpu"
    assert worker.ask(60.0, do="time", name="nobody", steps=1)["failed"].startswith("LookupError")
    worker._process.kill()
    crashed = worker.ask(60.0, do="describe")
    assert crashed["ended"]
    assert "ended with -9" in crashed["failed"]
    worker.close()


class FakeWorker:
    """Replies by a function of the request, and remembers what was asked."""

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def ask(self, timeout, **request):
        self.asked.append(request)
        return {} if request["do"] == "drop" else self.reply(request)


@pytest.fixture
def make_run(tmp_path):
    def make(platform="gpu", **workers):
        about = {"jax": {"platform": platform, "implementations": ["scan", "kernel", "cudnn"]}}
        about["torch"] = {"platform": "cuda"}
        results = Results(tmp_path, "fake device")
        return Run(tiny_plan(), Clock(100.0), results, workers, about, lambda line: None)

    return make


def test_a_graph_that_fails_is_done_without(make_run):
    def reply(request):
        if request["do"] == "train" and request["spec"]["graph"]:
            return {"failed": "capture", "ended": True}
        return {"seconds": 1.0} if request["do"] == "time" else {"losses": [1.0]}

    run = make_run(torch=FakeWorker(reply))
    for _ in range(2):
        row = run.measure("train", {}, [Peer("torch", "torch", {"graph": True})], 8)
        assert row["peers"]["torch"]["median_seconds"] == 1 / 8
        assert row["peers"]["torch"]["without_graph_because"] == "capture"
    assert [request["spec"]["graph"] for request in run.workers["torch"].asked if request["do"] == "train"] == [
        True, False, False,
    ]  # fmt: skip


def test_a_peer_that_takes_the_process_along_is_not_tried_again(make_run):
    def reply(request):
        if request["do"] == "time":
            return {"seconds": 1.0}
        return {"failed": "illegal address", "ended": True} if request["name"] == "bad" else {}

    run = make_run(jax=FakeWorker(reply))
    both = [Peer("good", "jax", {}), Peer("bad", "jax", {}), Peer("other", "elsewhere", {})]
    row = run.measure("train", {}, both, 8)
    assert row["peers"]["bad"] == {"failed": "illegal address", "ended": True}
    assert row["peers"]["other"] == {"does_not_serve": "elsewhere is not there"}
    assert row["peers"]["good"]["seconds"]
    # Set up again in the new process.
    assert [r["name"] for r in run.workers["jax"].asked if r["do"] == "train"] == ["good", "bad", "good"]
    assert run.measure("train", {}, both, 8)["peers"]["bad"]["failed"] == "not tried again after: illegal address"


def test_a_peer_that_does_not_serve_is_shown_with_its_words(make_run):
    def reply(request):
        if request["do"] == "time":
            return {"seconds": 1.0}
        return {} if request["name"] == OURS else {"does_not_serve": "float32 alone [for now]"}

    run = make_run(jax=FakeWorker(reply))
    stage = run.results.stage("train_step")
    asked = [Peer(OURS, "jax", {}), Peer("kernel", "jax", {})]
    stage["rows"].append(run.measure("train", Size(8, 2, 8)._asdict(), asked, 8))
    console = Console(record=True, width=120)
    report.show(run.results.content, console)
    assert "float32 alone (for now)" in console.export_text()


def test_the_peers_on_a_gpu(make_run):
    names = [peer.name for peer in against_everyone(make_run()) + against_torch(make_run(torch=None))[1:]]
    assert len(names) == len(set(names))
    assert {"jax cudnn tf32", "kernel bfloat16", "torch fp16 stacked", "torch tf32"} <= set(names)
    run = make_run()
    assert [peer.name for peer in against_torch(run)] == [OURS]
    # Where charjax's own choice cannot run, its other kernels take part at every point.
    run.given_up[OURS] = "hung"
    assert [peer.name for peer in against_torch(run)] == [OURS, "kernel bfloat16"]


def test_the_process_that_waits_holds_no_device(root):
    program = "import sys, benchmarks.gpu.__main__; sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_the_plan_covers_the_grid_once():
    plan = whole_plan()
    points = plan.important + plan.rest
    assert len(points) == len(set(points)) == 4 * 3 * 3


def test_the_headline_is_of_three_layers_of_512():
    measured = {
        OURS: {"seconds": [0.01], "median_seconds": 0.01},
        "torch fp16": {"seconds": [0.02], "median_seconds": 0.02},
    }
    rows = [{"sizes": Size(512, 3, 64)._asdict(), "peers": measured}]
    found = report.summary({"stages": {"train_step": {"rows": rows, "not_run": []}}})
    assert found["torch / charjax, training step"] == {"geometric_mean": pytest.approx(2), "least": 2, "points": 1}
    ours = found["three layers of 512"][f"{OURS}, B 64"]
    assert ours == {"characters_per_second": 640_000, "thousand_epochs_of_1_MB_seconds": 1562.5}


def test_nvidia_smi_is_read_or_its_absence_told(monkeypatch):
    from benchmarks.gpu import results

    monkeypatch.setattr(results.shutil, "which", lambda name: None)
    assert results.nvidia_smi() == {"missing": "nvidia-smi is not there"}
    monkeypatch.setattr(results.shutil, "which", lambda name: name)
    done = types.SimpleNamespace(returncode=0, stdout="H100, 570.1, 1980 MHz, 1980 MHz, 2619 MHz, 70 W, 700 W, 30\n")
    monkeypatch.setattr(results.subprocess, "run", lambda *_, **__: done)
    assert results.nvidia_smi()["driver_version"] == "570.1"


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_references_gradients_against_central_differences(one_hot):
    rng = np.random.default_rng(0)
    w_ih, w_hh, bias = rng.standard_normal((3, 16)), rng.standard_normal((4, 16)), rng.standard_normal(16)
    x = rng.integers(0, 3, (2, 5)) if one_hot else rng.standard_normal((2, 5, 3))
    c, h = rng.standard_normal((2, 2, 4))
    pulls = [rng.standard_normal(out.shape) for out in lstm_float64(w_ih, w_hh, bias, x, c, h)]
    arguments = [w_ih, w_hh, bias, x, c, h]
    found = lstm_gradients_float64(*arguments, dy=pulls[0], dc=pulls[1], dh=pulls[2])
    assert (found.x is None) == one_hot
    for place, gradient in enumerate(found):
        if gradient is not None:

            def scalar(array, place=place):
                outputs = lstm_float64(*arguments[:place], array, *arguments[place + 1 :])
                return sum(np.sum(out * pull) for out, pull in zip(outputs, pulls, strict=True))

            np.testing.assert_allclose(gradient, numerical_gradient(scalar, arguments[place]), rtol=1e-6, atol=1e-7)
