"""`python -m benchmarks.gpu`: its stages, cut short and with failures; the processes are fake here."""

import json

import pytest

import benchmarks.gpu.__main__ as gpu
from benchmarks.common.contest import Contest
from benchmarks.common.results import ResultsFile
from benchmarks.gpu import report
from benchmarks.gpu.diagnosis import run_sampling
from benchmarks.gpu.plan import Clock, Size, tiny_plan, whole_plan
from benchmarks.gpu.stages import OURS, Run, against_everyone, against_torch, generators, run_correctness, run_rest

ABOUT = {
    "jax": {"platform": "gpu", "device": "fake", "implementations": ["scan", "kernel", "cudnn"]},
    "torch": {"platform": "cuda"},
}


class FakeWorker:
    """Describes itself, takes a second per step, and answers all else by a function of the request."""

    def __init__(self, side="jax", answer=lambda request: {}):
        self.side, self.answer, self.asked, self.closed = side, answer, [], False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.closed = True

    def ask(self, do, *, timeout, **request):
        self.asked.append({"do": do, **request})
        if do.endswith(":describe"):
            return ABOUT[self.side]
        if do == "time":
            return {"seconds": 1.0}
        return {} if do == "drop" else self.answer(self.asked[-1])


@pytest.fixture
def workers(monkeypatch):
    made = {side: FakeWorker(side) for side in ("jax", "torch")}
    monkeypatch.setattr(gpu, "make_workers", lambda compiled: dict(made))
    monkeypatch.setattr(gpu, "make_worker", lambda compiled, more: FakeWorker())
    return made


def rehearse(tmp_path, capsys, *arguments):
    code = gpu.main(["--tiny", "--results", str(tmp_path), *arguments])
    (path,) = tmp_path.glob("gpu-*-fake.json")
    return code, json.loads(path.read_text()), capsys.readouterr().out


def stage_with(number):
    def stage(run, share):
        run.stage(f"stage {number}")["rows"].append({"number": number})

    return stage


def test_a_stage_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch, workers):
    def bad(run, share):
        assert json.loads(run.file.path.read_text())["stages"]["stage 1"]["rows"] == [{"number": 1}]
        raise ZeroDivisionError("a stage with an error in it")

    chosen = {"one": (stage_with(1), 0.3), "bad": (bad, 0.3), "two": (stage_with(2), 0.4)}
    monkeypatch.setattr(gpu, "STAGES", chosen)
    code, content, out = rehearse(tmp_path, capsys, "--without-torch")
    assert code == 1
    assert content["stages"]["bad"]["failed"] == "ZeroDivisionError: a stage with an error in it"
    assert content["stages"]["stage 2"]["rows"] == [{"number": 2}]
    assert "bad FAILED: ZeroDivisionError" in out
    assert {"date", "command", "machine", "about", "nvidia_smi", "nvidia_smi_after", "summary"} <= content.keys()
    assert workers["jax"].closed


def test_an_interrupted_run_leaves_what_it_has(tmp_path, capsys, monkeypatch, workers):
    def interrupted(run, share):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "STAGES", {"one": (stage_with(1), 0.5), "interrupted": (interrupted, 0.5)})
    with pytest.raises(KeyboardInterrupt):
        rehearse(tmp_path, capsys)
    (path,) = tmp_path.glob("gpu-*.json")
    assert json.loads(path.read_text())["stages"]["stage 1"]["rows"] == [{"number": 1}]
    assert workers["jax"].closed


def test_points_without_time_are_listed(tmp_path, capsys, workers):
    code, content, out = rehearse(tmp_path, capsys, "--seconds", "0.000001")
    assert code == 0
    assert set(content["stages"]) == set(gpu.STAGES)
    assert content["stages"]["train_step"]["not_run"] == [Size(8, 2, 8)._asdict()]
    assert len(content["stages"]["generation"]["not_run"]) == 4
    assert "train_step: 1 points not run" in out


def test_without_a_device_only_a_rehearsal_runs(tmp_path, monkeypatch, workers):
    monkeypatch.setitem(ABOUT["jax"], "platform", "cpu")
    with pytest.raises(SystemExit, match="--tiny"):
        gpu.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(ABOUT, "jax", {"cannot_run": "no jaxlib"})
    with pytest.raises(SystemExit, match="JAX does not start: no jaxlib"):
        gpu.main(["--tiny", "--results", str(tmp_path)])


@pytest.mark.parametrize(("platform", "kept"), [("cuda", True), ("cpu", False)])
def test_pytorch_takes_part_on_the_same_kind_of_device(tmp_path, capsys, monkeypatch, workers, platform, kept):
    if gpu.importlib.util.find_spec("torch") is None:
        pytest.skip("needs PyTorch")
    monkeypatch.setitem(ABOUT["torch"], "platform", platform)
    monkeypatch.setattr(gpu, "STAGES", {})
    _, _, out = rehearse(tmp_path, capsys)
    assert f"PyTorch: {'yes' if kept else 'no'}" in out


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"agrees": True}, 0),
        ({"agrees": False}, 1),
        ({"cannot_run": "float32 only", "refused": True}, 0),
        ({"cannot_run": "illegal address"}, 1),
    ],
)
def test_the_exit_code_tells_a_failure_from_a_refusal(tmp_path, capsys, monkeypatch, workers, row, code):
    def check(run, share):
        sizes = {"implementation": "kernel", "dtype": "float32", "hidden_dim": 8}
        errors = {} if "cannot_run" in row else {"outputs": 1.0, "gradients": 1.0}
        run.stage("correctness")["rows"].append({**sizes, **errors, **row})

    monkeypatch.setattr(gpu, "STAGES", {"correctness": (check, 1.0)})
    assert rehearse(tmp_path, capsys, "--without-torch")[0] == code


@pytest.fixture
def make_run(tmp_path):
    def make(answer=lambda request: {}, *, torch=True):
        made = {side: FakeWorker(side, answer) for side in ("jax", *(["torch"] if torch else []))}
        file = ResultsFile(tmp_path, "gpu", "fake", stages={})
        more = made["jax"]
        return Run(tiny_plan(), Clock(100.0), file, made, ABOUT, lambda line: None, Contest(), lambda environment: more)

    return make


def test_losses_that_differ_are_marked(make_run):
    def answer(request):
        apart = request.get("peer") == "torch fp16"
        return {"losses": [4.0, 3.0, 2.0, 2.0 if apart else 1.0]}

    run = make_run(answer)
    run_rest(run, 1.0)
    (row,) = run.stage("train_step_rest")["rows"]
    assert [name for name, result in row["peers"].items() if not result["losses_agree"]] == ["torch fp16"]
    assert "1000.00 !" in report.details_table([row])
    assert run.workers["jax"].asked[-1] == {"do": "drop"}


def test_refusals_and_hangs_are_shown_with_their_words(make_run):
    def answer(request):
        if request["implementation"] == "kernel":
            return {"cannot_run": "no answer within 90 s", "ended": True, "hung": True}
        agrees = request["implementation"] == "scan"
        refused = {"cannot_run": "only float32 [for now]", "refused": True}
        return {"outputs": 1e-7, "gradients": 1e-6} if agrees else refused

    run = make_run(answer)
    run_correctness(run, 1.0)
    found = report.correctness_table(run.stage("correctness")["rows"])
    # What hung is not tried again; implementations for the device come before the portable ones.
    assert [request["implementation"] for request in run.workers["jax"].asked] == [
        "kernel", "cudnn", "scan", "cudnn", "scan", "cudnn", "cudnn",
    ]  # fmt: skip
    assert "| FAILS: not tried again after: no answer within 90 s" in found
    assert "| only float32 [for now]" in found
    assert "1.0e-07 | 1.0e-06   | agrees" in found


def test_the_peers_on_a_gpu(make_run):
    for peers in (against_everyone(make_run()), against_torch(make_run())):
        names = [peer.name for peer in peers]
        assert len(names) == len(set(names))
        assert {OURS, "mosaic_gpu"} <= set(names)
    assert {"torch fp16", "torch fp16 stacked", "torch bf16"} <= set(names)
    assert {"jax cudnn tf32", "kernel bfloat16", "torch tf32"} <= {it.name for it in against_everyone(make_run())}
    run = make_run(torch=False)
    assert [peer.name for peer in against_torch(run)] == [OURS, "mosaic_gpu"]
    assert [peer.name for peer in generators(run)] == [OURS, "mosaic_gpu"]


def test_a_decoder_is_judged_by_its_state_and_its_choices(make_run):
    right = {"state": 1e-3, "choice": 0.01}
    answers = [right, right | {"state": 0.5}, right | {"choice": 1.0}, {"cannot_run": "illegal address"}] * 2
    run = make_run(lambda request: answers.pop(0))
    run_sampling(run, 1.0)
    rows = run.stage("sampling")["rows"]
    assert [row.get("agrees") for row in rows] == [True, False, False, None] * 2
    found = report.full_text({"stages": {"sampling": {"rows": rows, "not_run": []}}})
    assert found.count("agrees") == 2
    assert found.count("DIFFERS") == 4
    assert found.count("FAILS: illegal address") == 2


def test_profiles_and_trainings_are_shown():
    kernels = [{"name": "gemm", "seconds": 1e-3, "launches": 202.0}]
    found = {"span": 2e-3, "busy": 1.5e-3, "launches": 300.0, "kernels": kernels}
    peers = {OURS: found, "mosaic_gpu": {"cannot_run": "no kernels", "refused": True}}
    content = {
        "stages": {
            "limits": {"rows": [{"matmul_flops": 767e12, "copy_bytes": 4.2e12}], "not_run": []},
            "profile": {"rows": [{"sizes": Size(512, 2, 64)._asdict(), "peers": peers}], "not_run": []},
            "training": {"rows": [{"evaluations": [[12.3, 40.0, 1.5, 1.6]]}], "not_run": []},
        }
    }
    shown = " ".join(report.full_text(content).split())
    assert "| 767 | 4,200 | - |" in shown
    assert "| H512 L2 B64 | charjax | 2.00 | 1.50 | 300 | gemm 1.00 |" in shown
    assert "| mosaic_gpu | - | - | - | no kernels |" in shown
    assert "| 12.3 | 40 | 1.500 | 1.600 |" in shown


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
    content = {"stages": {"train_step": {"rows": rows, "not_run": []}}}
    found = report.summary(content)
    assert found["torch / charjax, training step"] == {"geometric_mean": pytest.approx(2), "least": 2, "points": 1}
    ours = found["three layers of 512"][f"{OURS}, B 64"]
    assert ours == {"characters_per_second": 640_000, "thousand_epochs_of_1_MB_seconds": 1562.5}
    shown = report.full_text({**content, "summary": found})
    assert "3 x 512, charjax, B 64: 640,000 characters/s, 1000 epochs of 1 MB in 0.43 h" in shown
