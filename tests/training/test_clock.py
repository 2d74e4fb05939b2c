"""Neither setting the wall clock during a run nor the dates of files changes anything."""

import ast
import dataclasses
import itertools
import math
import os
import time

import pytest
from helpers.small_run import SMALL, assert_same, small_corpus, small_model

from charjax import fit
from charjax.runs.checkpoint import read_header
from charjax.runs.logs import read_metrics

CORPUS = small_corpus()
MODEL = small_model(CORPUS)
# The rate does not depend on the number of epochs, so one epoch and then another are the same as two.
TRAIN = dataclasses.replace(SMALL, schedule="constant", warmup_frac=0.0, checkpoint_every=4)
DAY = 86_400
HOUR = 3600
WALL_CLOCK = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime", "datetime"}


def names_in(path):
    """Yields the names and dotted names in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute | ast.Name):
            yield ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from (base + alias.name for alias in node.names)


def test_no_module_reads_the_wall_clock(root):
    for path in (root / "charjax").rglob("*.py"):
        found = {name for name in names_in(path) if name in WALL_CLOCK or name.startswith("datetime.")}
        assert not found, path


@pytest.fixture(params=[-DAY, HOUR], ids=["backwards", "forwards"])
def jumping_clock(request, monkeypatch):
    """Makes the wall clock jump a day back or an hour forward at each reading; yields the counter of readings."""
    start, readings = time.time(), itertools.count()

    def now():
        return start + request.param * next(readings)

    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now() * 1e9))
    return readings


def steps_kept(out):
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_metrics(ours, theirs):
    mine, other = (read_metrics(out / "metrics.jsonl") for out in (ours, theirs))
    assert [(metrics.step, metrics.val_loss) for metrics in mine] == [
        (metrics.step, metrics.val_loss) for metrics in other
    ]
    # The steps per call differ, and so does the rounding of the sums over them.
    assert [metrics.train_loss for metrics in mine] == pytest.approx(
        [metrics.train_loss for metrics in other], rel=1e-6
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return fit(MODEL, CORPUS, TRAIN, out=out), out


def test_a_jumping_clock_changes_nothing(whole, tmp_path, jumping_clock):
    state, out = whole
    run = tmp_path / "run"
    began = time.perf_counter()
    fit(MODEL, CORPUS, TRAIN, epochs=1, out=run)
    assert_same(fit(MODEL, CORPUS, TRAIN, out=run, resume=True), state)
    took = time.perf_counter() - began
    assert next(jumping_clock) > 0, "nothing read the clock"
    assert steps_kept(run) == steps_kept(out)
    assert_same_metrics(run, out)
    metrics = read_metrics(run / "metrics.jsonl")
    elapsed = [evaluation.elapsed_seconds for evaluation in metrics]
    assert elapsed == sorted(elapsed)
    assert 0 < elapsed[0] < elapsed[-1] <= read_header(run).progress.elapsed_seconds < took
    for evaluation in metrics:
        assert 1 / took < evaluation.chars_per_second < math.inf


@pytest.mark.parametrize(
    "date",
    [
        pytest.param(0, marks=pytest.mark.slow, id="in 1970"),
        pytest.param(2 * 10**9, marks=pytest.mark.slow, id="in 2033"),
        pytest.param(None, id="in reverse order"),
    ],
)
def test_dates_of_files_do_not_matter(whole, tmp_path, date):
    state, out = whole
    run = tmp_path / "run"
    fit(MODEL, CORPUS, TRAIN, epochs=1, out=run)
    files = sorted(run.rglob("*"), key=lambda path: path.stat().st_mtime_ns)
    for age, path in enumerate(files):
        seconds = 10**9 - age * DAY if date is None else date
        os.utime(path, (seconds, seconds))
    assert read_header(run).progress.step == max(steps_kept(run))
    assert_same(fit(MODEL, CORPUS, TRAIN, out=run, resume=True), state)
    assert_same_metrics(run, out)
    assert steps_kept(run) == steps_kept(out)
