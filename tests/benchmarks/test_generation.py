"""`python -m benchmarks.generation`: its plan, its ratios, and the peers that it rejects."""

import shutil

import numpy as np
import pytest

from benchmarks import generation
from benchmarks.common import bandwidth, problem
from benchmarks.peers import jax_generation

SIZES = {"hidden_dim": 8, "hidden_layers": 2, "streams": 64}
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")


def test_the_plan():
    tiny, whole = generation.parse(["--tiny"]), generation.parse(["--dtypes", "int8", "--streams", "1"])
    assert (tiny.peers, tiny.axes, tiny.rounds) == (["charjax", "torch loop", "flax"], [[32], [8]], 1)
    assert (whole.peers, whole.axes, whole.dtypes) == (list(generation.MAKE), [[128, 512], [1]], ["int8"])


def test_a_text_has_whole_calls_of_steps():
    assert [generation.text_length(streams) for streams in (1, 32, 1024)] == [2049, 257, 49]


def test_without_a_compiler_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(bandwidth.shutil, "which", lambda name: None)
    assert bandwidth.build(tmp_path) is None


@needs_compiler
@pytest.mark.slow
def test_the_weights_are_read_no_faster_than_possible(tmp_path):
    program = bandwidth.build(tmp_path)
    found = bandwidth.measure(program, 100_000, 0.01)
    assert 0.01 < found["gigabytes_per_second"]["1"] < 2000
    assert found["seconds"] == pytest.approx(1e-4 / found["gigabytes_per_second"][str(found["threads"])])
    # Ten times the bytes, in about ten times the time: no pass was left out.
    assert bandwidth.measure(program, 1_000_000, 0.01)["seconds"] > 3 * found["seconds"]


def peers(**rates):
    return {name.replace("_", " "): {"characters_per_second": r, "median": sorted(r)[1]} for name, r in rates.items()}


def row(**rates):
    rounds = [{"seconds": seconds, "threads": 2, "gigabytes_per_second": {"2": 1.0}} for seconds in (1.0, 2.0, 4.0)]
    limits = {"float32": {"step_bytes": 8, "rounds": rounds}}
    return {"sizes": SIZES, "peers": {**peers(**rates), "torch loop float32": {"cannot_run": "why"}}, "limits": limits}


def test_ratios_are_of_the_rounds_and_against_the_better_torch():
    found = row(charjax_float32=[32.0, 32, 8], torch_loop_bfloat16=[8.0, 4, 2], torch_compiled_float32=[9.0, 3, 3])
    assert generation.better_torch(found) == "torch loop bfloat16"
    assert generation.rate_ratio(found, "charjax float32", "torch loop bfloat16") == (4, 4, 8)
    assert generation.rate_ratio(found, "charjax float32", "flax float32") is None
    assert generation.limit(found, "float32") == [64, 32, 16]
    assert generation.of_limit(found, "float32") == (0.5, 0.5, 1)
    assert generation.summary([found], "float32") == {
        "charjax / better torch": {"geometric_mean": pytest.approx(4), "least": 4, "points": 1}
    }
    speeds = generation.speed_table([found], ["float32"], {}).splitlines()[-1]
    assert [cell.strip() for cell in speeds.strip("|").split("|")] == [
        "8", "64", "float32", "32", "-", "3", "-", "4.00 (4.00-8.00)", "loop bfloat16", "-", "32", "0.50 (0.50-1.00)",
        "-",
    ]  # fmt: skip
    assert "why" in generation.times_table([found], ["float32"])
    assert set(generation.part(found, "float32")["peers"]) == set(found["peers"])


class Judge:
    """What `check` asks of a process, here of this one."""

    def ask(self, do, **request):
        return getattr(jax_generation, do.removeprefix("jax_generation:"))(**request)


class Worker:
    """A peer that samples from the model at a temperature."""

    def __init__(self, temperature=1.0, *, logits=0.0, same=False):
        self.temperature, self.shift, self.same = temperature, logits, same

    def ask(self, do, *, peer, **request):
        if do == "logits":
            found = np.asarray(jax_generation.reference(SIZES, request["ids"])["logits"])
            return {"logits": (found + self.shift).tolist()}
        import jax

        import charjax

        model = charjax.CharLSTM(128, hidden_dim=8, hidden_layers=2)
        context = problem.text(SIZES["streams"], problem.CONTEXT)
        ids = charjax.generate(
            model, problem.generation_params(SIZES), context,
            key=jax.random.key(0), length=30, temperature=self.temperature,
        )  # fmt: skip
        return {"ids": np.asarray(ids[:1].repeat(len(ids), 0) if self.same else ids).tolist()}


def test_only_the_model_passes():
    def check(*arguments, **options):
        peer = generation.Peer("a peer", Worker(*arguments, **options), "make", {"dtype": "float32"})
        return generation.check(peer, Judge(), SIZES)

    verdict = check()
    assert verdict["logits_difference"] == 0
    assert abs(verdict["excess"]) < 5 * verdict["deviation"]
    assert verdict["entropy"] < 4.5  # 4.85 if all characters were equally likely
    with pytest.raises(SystemExit, match="logits differ"):
        check(logits=0.01)
    with pytest.raises(SystemExit, match="not sampled from the model"):
        check(1.25)
    with pytest.raises(SystemExit, match=r"same text|not sampled"):
        check(same=True)
