"""Fifty times killed at random moments and resumed: nothing complete is lost, and the end is that of a run left alone.

python -m pytest -m slow tests/test_soak.py
"""

import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter

import pytest
from helpers.real_runs import assert_same_run, command, environment, last_state, run, sealed_steps, uninterrupted_run

from charjax.runs.checkpoint import read_header
from charjax.runs.integrity import check_seal

KILLS = 50
CHECKPOINT_EVERY = 4  # as the options of real_runs have it
LONG = ("--epochs", "50")

# The command line, with a reporter that leaves in a file where training began and where it is.
TOLD = """
import os, sys
from charjax import cli
from charjax.commands import train
from charjax.report.progress import NullReporter

file = os.open(sys.argv[1], os.O_RDWR)


class Reporter(NullReporter):
    def start(self, total_steps, step, chars_per_step, epochs=1):
        os.pwrite(file, step.to_bytes(8, "little") * 2, 0)

    def update(self, step, loss):
        os.pwrite(file, step.to_bytes(8, "little"), 8)


train.make_reporter = Reporter
sys.exit(cli.main(sys.argv[2:]))
"""


class Steps:
    """Where a training began and where it is; None before it has."""

    def __init__(self, path):
        self.path = path
        self.path.write_bytes(b"")

    def read(self):
        content = self.path.read_bytes()
        return [int.from_bytes(content[i : i + 8], "little") for i in (0, 8)] if content else [None, None]


def folders(out):
    try:
        return os.listdir(out / "checkpoints")
    except FileNotFoundError:
        return []


def unsealed(out):
    """Steps whose checkpoints are there but not sealed."""
    return sorted({int(name) for name in folders(out) if name.isdigit()} - set(sealed_steps(out)))


def is_writing(out):
    return any(name.endswith("tmp") for name in folders(out))


def wait_for_a_moment(draw, out, steps, is_alive):
    """Waits for the moment to kill: any, or after some steps, or one in which a checkpoint is written or sealed."""
    aim = draw.choice(["any time", "steps", "writing", "writing", "sealing"])
    if aim == "any time":
        end = time.monotonic() + draw.uniform(0, 5)
        while is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        return
    more = draw.randrange(30)
    reached = {"steps": lambda: True, "writing": lambda: is_writing(out), "sealing": lambda: unsealed(out)}[aim]
    while is_alive():
        began, now = steps.read()
        if began is not None and now >= began + more and reached():
            time.sleep(draw.choice([0, draw.uniform(0, 0.01)]))
            return
        time.sleep(0.0002)


def phase(out, began):
    """What the kill hit, by what it left."""
    if began is None:
        return "starting"  # what is half done may be of the kill before
    if is_writing(out):
        return "a checkpoint half written"
    if unsealed(out):
        return "a checkpoint not sealed"
    if any(name.endswith(".removed") for name in folders(out)):
        return "an old checkpoint half removed"
    return "between two checkpoints"


def check_what_is_left(out, before):
    """Checks that what was complete before a kill is there and can be read, or gave way to later ones: -> the last."""
    after = sealed_steps(out)
    if not before:
        return after[-1] if after else None
    assert after[-1] >= before[-1]
    best = read_header(out).progress.best_step
    assert best is None or best in after
    for step in before:
        assert step in after or step < after[-2], (step, after)
    for step in after:
        check_seal(out / "checkpoints" / str(step))
    assert int(last_state(out).step) == after[-1]
    return after[-1]


@pytest.mark.slow
def test_fifty_kills(tmp_path, monkeypatch, capsys):
    # A process killed while it writes to the compilation cache leaves half a file, which no other must read.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    text, whole = uninterrupted_run(tmp_path, *LONG)
    out, began_at = tmp_path / "killed", time.monotonic()
    seed = random.randrange(10**6)
    draw, steps = random.Random(seed), Steps(tmp_path / "steps")
    phases, lost, latest = Counter(), [], None
    for number in range(1, KILLS + 1):
        steps.path.write_bytes(b"")
        resume = () if latest is None else ("--resume",)
        arguments = [sys.executable, "-c", TOLD, str(steps.path), *command(text, out, *LONG, *resume)[3:]]
        with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            wait_for_a_moment(draw, out, steps, lambda p=process: p.poll() is None)
            assert process.poll() is None, process.stderr.read()
            before = sealed_steps(out)
            process.kill()
        began, now = steps.read()
        assert began in (None, latest or 0)
        hit = phase(out, began)
        latest = check_what_is_left(out, before)
        phases[hit] += 1
        if began is not None:
            lost.append(now - (latest or 0))
            # The save of one checkpoint may go on until the next is due.
            assert lost[-1] <= 2 * CHECKPOINT_EVERY
        with capsys.disabled():
            print(f"kill {number}: {hit}; steps {began} to {now}, resuming from {latest}", flush=True)
    run(text, out, "--resume", *LONG)
    assert_same_run(out, whole)
    with capsys.disabled():
        print(f"{KILLS} kills in {(time.monotonic() - began_at) / 60:.1f} minutes, seed {seed}")
        print(*(f"  {count} hit {what}" for what, count in phases.most_common()), sep="\n")
        print(f"  steps lost: {min(lost)} to {max(lost)}, median {statistics.median(lost):g}")
        print(f"  bit for bit the run left alone, after {read_header(out).progress.step} steps")
