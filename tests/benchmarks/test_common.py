"""What the benchmarks share: worker processes, peers in turn, ratios, tables, files; and every command's help."""

import importlib
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.lstm_reference import lstm_float64, lstm_gradients_float64, numerical_gradient

from benchmarks.common import machine, problem, report
from benchmarks.common.contest import Contest, Peer
from benchmarks.common.fits import ratio_of_speeds
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import Worker

COMMANDS = (
    "train_step",
    "generation",
    "gpu",
    "saving",
    "streaming",
    "devices",
    "scaling",
    "speedrun",
    "compiled",
    "page",
)
STARTERS = ("train_step", "generation", "gpu.__main__", "saving", "streaming", "devices", "scaling", "speedrun")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    module = importlib.import_module(f"benchmarks.{command}{'.__main__' if command == 'gpu' else ''}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert not end.value.code
    assert f"usage: python -m benchmarks.{command}" in capsys.readouterr().out


def test_the_process_that_waits_holds_no_device(root):
    imports = "; ".join(f"import benchmarks.{name}" for name in STARTERS)
    program = f"import sys; {imports}; sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_a_worker_that_hangs_or_crashes_is_replaced():
    with Worker() as worker:
        assert worker.ask("drop", timeout=0.0) == {"cannot_run": "no answer within 0 s", "ended": True, "hung": True}
        assert worker.ask("drop") == {}
        assert worker.ask("time", peer="nobody", steps=1) == {"cannot_run": "LookupError: it was lost with its process"}
        assert worker.ask("nothing:such")["cannot_run"].startswith("ModuleNotFoundError")
        worker._process.kill()
        assert worker.ask("drop") == {"cannot_run": "ended with -9: nothing on stderr", "ended": True}
        assert worker.ask("drop") == {}


class FakeWorker:
    """Answers by a function of the request, and remembers the requests."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def ask(self, do, *, timeout=None, **request):
        self.asked.append({"do": do, **request})
        return {"seconds": 1.0} if do == "time" else self.answer(request)


def test_each_round_begins_with_another_peer():
    worker = FakeWorker(lambda request: {})
    peers = [Peer(name, worker, "make") for name in "abc"]
    contest = Contest()
    results = contest.set_up(peers, sizes={"size": 1})
    contest.time_steps(peers, results, rounds=2, least_seconds=12.0, multiple=8)
    assert worker.asked[0] == {"do": "set_up", "peer": "a", "make": "make", "sizes": {"size": 1}}
    assert [request["peer"] for request in worker.asked if request["do"] == "time"] == [*"abc", *"abc", *"bca"]
    # A multiple of 8 steps of a second each that takes at least 12.
    assert [request["steps"] for request in worker.asked[3:9]] == [8, 8, 8, 16, 16, 16]
    assert results["b"] == {"seconds": [1.0, 1.0], "median_seconds": 1.0}


def test_a_graph_that_fails_is_left_out():
    def answer(request):
        return {"cannot_run": "capture", "ended": True} if request["graph"] else {"losses": [1.0]}

    worker, contest = FakeWorker(answer), Contest()
    peers = [Peer("torch", worker, "make", {"graph": True})]
    for _ in range(2):
        assert contest.set_up(peers) == {"torch": {"losses": [1.0], "without_graph_because": "capture"}}
    assert [request["graph"] for request in worker.asked] == [True, False, False]
    assert not contest.given_up


def test_a_peer_that_takes_its_process_down_is_not_tried_again():
    def answer(request):
        return {"cannot_run": "illegal address", "ended": True} if request["peer"] == "bad" else {}

    worker, contest = FakeWorker(answer), Contest()
    peers = [Peer("good", worker, "make"), Peer("bad", worker, "make")]
    results = contest.set_up(peers)
    contest.time_steps(peers, results, rounds=1, least_seconds=0.0)
    assert results["bad"] == {"cannot_run": "illegal address", "ended": True}
    assert results["good"]["seconds"] == [1.0]
    # Set up again, in the new process.
    assert [request["peer"] for request in worker.asked if request["do"] == "set_up"] == ["good", "bad", "good"]
    assert contest.set_up(peers)["bad"] == {"cannot_run": "not tried again after: illegal address"}


def test_a_ratio_is_the_median_of_the_rounds_own():
    seconds = {"charjax": [1.0, 2.0, 4.0], "torch": [2.0, 2.0, 12.0], "slow": [9.0, 9.0, 9.0]}
    row = {"peers": {name: {"seconds": it, "median_seconds": sorted(it)[1]} for name, it in seconds.items()}}
    assert report.time_ratio(row, ["torch", "slow", "none"]) == (2.0, 1.0, 3.0)
    assert report.time_ratio(row, ["none"]) is None
    assert report.time_ratio(row, ["torch"], ours="none") is None
    turns = [{"without": 1.0, "saving": 2.0}, {"without": 3.0, "saving": 4.0}, {"without": 9.0, "saving": 10.0}]
    assert ratio_of_speeds(turns, "saving", "without") == {"median": 0.75, "least": 0.5, "most": 0.9}


def test_a_summary_is_a_geometric_mean():
    found = report.summarize({"ratio": [(2.0, 1.0, 3.0), None, (8.0, 8.0, 8.0)], "none": [None]})
    assert found == {"ratio": {"geometric_mean": pytest.approx(4), "least": 2, "points": 2}}
    assert report.summary_lines(found) == ["ratio: geometric mean 4.00, least 2.00, 2 points"]


def test_tables_are_aligned():
    assert report.markdown(["H", "ratio"], [["128", report.show_ratio((2.0, 1.0, 3.0))], ["8", "-"]]) == (
        "| H   | ratio            |\n| --- | ---------------- |\n| 128 | 2.00 (1.00-3.00) |\n| 8   | -                |"
    )
    assert report.show(None) == report.show(float("nan")) == "-"
    assert report.why({"cannot_run": "a|b" + 100 * "x"}) == "a/b" + 57 * "x"


def test_results_are_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["anything", "--peers", "flax nn.RNN"])
    file = ResultsFile(tmp_path / "new", "gpu-x", "suffix", rows=[1])
    path = file.save()
    assert path.name.startswith("gpu-x-")
    assert path.name.endswith("-suffix.json")
    found = json.loads(path.read_text())
    assert found["command"] == "python -m benchmarks.gpu --peers 'flax nn.RNN'"
    assert {"date", "machine", "rows"} <= found.keys()
    file.content["rows"] = [object()]
    with pytest.raises(TypeError):
        file.save()
    assert json.loads(path.read_text()) == found


def test_nvidia_smi_is_read_or_its_absence_reported(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.nvidia_smi() == {"missing": "nvidia-smi is not installed"}
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    done = types.SimpleNamespace(returncode=0, stdout="H100, 570.1, 1980 MHz, 1980 MHz, 2619 MHz, 70 W, 700 W, 30\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    assert machine.nvidia_smi()["driver_version"] == "570.1"


def test_windows_are_consecutive_in_every_sequence():
    found = problem.windows(3)
    assert found.shape == (problem.WINDOWS, 3, problem.SEQ_LEN + 1)
    # The last character of a window is the first of the next.
    np.testing.assert_array_equal(found[1:, :, 0], found[:-1, :, -1])
    flat = np.concatenate([found[:, row, :-1].ravel() for row in range(3)])
    np.testing.assert_array_equal(flat, problem.training_ids({"batch_size": 3})[:-1])


def test_work_is_that_of_the_weights():
    sizes = {"hidden_dim": 8, "hidden_layers": 2, "streams": 64, "batch_size": 10}
    params = problem.initial_params(sizes)
    multiplied = [params["layer_0"]["cell"]["w_hh"], *(params["layer_1"]["cell"][name] for name in ("w_ih", "w_hh"))]
    count = sum(array.size for array in multiplied) + params["head"]["kernel"].size
    assert problem.multiplied_weights(sizes) == count
    assert problem.step_flops(sizes) == 2 * 64 * count
    assert problem.training_flops(sizes) == 3 * 2 * count * 10 * problem.SEQ_LEN
    assert problem.step_bytes(sizes, "bfloat16") == 2 * (count + 64 * 32)
    # As many rows of the table as there are characters, however many texts.
    assert problem.step_bytes({**sizes, "streams": 1000}, "float32") == 4 * (count + 128 * 32)


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
