"""The benchmark of saving in the background, with a tiny model."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers.small_run import save_run, small_corpus, small_model

from benchmarks.saving import megabytes, ratios


def test_a_ratio_is_the_median_of_the_rounds_own():
    seconds = [{"without": 1.0, "saving": 2.0}, {"without": 3.0, "saving": 4.0}, {"without": 9.0, "saving": 10.0}]
    assert ratios(seconds) == {"median": 0.75, "least": 0.5, "most": 0.9}


def test_a_checkpoint_that_is_being_removed_does_not_count(tmp_path):
    corpus = small_corpus()
    run = save_run(tmp_path / "run", corpus, small_model(corpus))
    latest = run / "checkpoints" / "1"
    shutil.copytree(latest, latest.with_name("0.removed"))
    size = sum(path.stat().st_size for path in latest.rglob("*") if path.is_file())
    assert megabytes(run) == size / 1e6 > 0


def test_saving_rehearsed(tmp_path, root):
    sizes = ["--hidden-dim", "8", "--hidden-layers", "1", "--batch-size", "8", "--seq-len", "16", "--every", "5"]
    command = [sys.executable, "-m", "benchmarks.saving", *sizes, "--rounds", "2", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("saving-*.json")
    result = json.loads(path.read_text())
    assert {"date", "command", "machine", "sizes", "checkpoint_megabytes"} <= result.keys()
    assert [set(seconds) for seconds in result["seconds"]] == [{"saving", "without"}] * 2
    assert result["speed_saving_to_without"] == pytest.approx(ratios(result["seconds"]))
    assert result["checkpoint_megabytes"] > 0


def test_a_training_that_ends_stops_the_benchmark(tmp_path, root):
    command = [sys.executable, "-m", "benchmarks.saving", "--text", str(tmp_path / "nowhere.txt")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere.txt does not exist" in done.stderr
    assert done.stderr.splitlines()[-1] == "a training ended; what it printed says why"
