"""A run killed fifty times at random moments and resumed loses nothing complete, and ends like an uninterrupted one.

python -m pytest -m slow tests/system/test_soak.py
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

from charjax.runs.checkpoint_header import read_header
from charjax.runs.integrity import check_digests
from charjax.runs.model_file import load_params

KILLS = 50
CHECKPOINT_EVERY = 4
LONG = ("--epochs", "50", "--checkpoint-every", str(CHECKPOINT_EVERY))

# The command line, with a reporter that writes the first and the current step of training to a file.
REPORTING = """
import os, sys
from charjax.cli import main as cli
from charjax.cli.commands import train
from charjax.progress.reporter import NullReporter

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
    """The first and the current step of a training run; None before it starts."""

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


def incomplete(out):
    """Steps of checkpoints without digests."""
    return sorted({int(name) for name in folders(out) if name.isdigit()} - set(sealed_steps(out)))


def is_writing(out):
    return any(name.endswith("tmp") for name in folders(out))


def wait_for_a_moment(rng, out, steps, is_alive):
    """Waits for the moment to kill: any, after some steps, or while a checkpoint is written or completed."""
    aim = rng.choice(["any time", "steps", "writing", "writing", "completing"])
    if aim == "any time":
        end = time.monotonic() + rng.uniform(0, 5)
        while is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        return
    more = rng.randrange(30)
    reached = {"steps": lambda: True, "writing": lambda: is_writing(out), "completing": lambda: incomplete(out)}[aim]
    while is_alive():
        began, now = steps.read()
        if began is not None and now >= began + more and reached():
            time.sleep(rng.choice([0, rng.uniform(0, 0.01)]))
            return
        time.sleep(0.0002)


def phase(out, began):
    """Names what the kill interrupted, by what it left."""
    if began is None:
        return "starting"  # anything incomplete may be of the kill before
    if is_writing(out):
        return "a checkpoint half written"
    if incomplete(out):
        return "a checkpoint without digests"
    if list(out.glob(".*.new")):
        return "a model file half written"
    if any(name.endswith(".removed") for name in folders(out)):
        return "an old checkpoint half removed"
    return "between two checkpoints"


def check_what_is_left(out, before):
    """Checks that checkpoints complete before a kill are undamaged, or replaced by later ones -> the last step."""
    after = sealed_steps(out)
    if not before:
        return after[-1] if after else None
    assert after[-1] >= before[-1]
    best = read_header(out).progress.best_step
    assert best is None or best in after
    for step in before:
        assert step in after or step < after[-2], (step, after)
    for step in after:
        check_digests(out / "checkpoints" / str(step))
    if (out / "model.safetensors").exists():
        load_params(out)
    assert int(last_state(out).step) == after[-1]
    return after[-1]


@pytest.mark.slow
def test_fifty_kills(tmp_path, monkeypatch, capsys):
    # A process killed while it writes to the compilation cache leaves half a file, which no other test must read.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    text, whole = uninterrupted_run(tmp_path, *LONG)
    out, began_at = tmp_path / "killed", time.monotonic()
    seed = random.randrange(10**6)
    rng, steps = random.Random(seed), Steps(tmp_path / "steps")
    phases, lost, latest = Counter(), [], None
    for number in range(1, KILLS + 1):
        steps.path.write_bytes(b"")
        resume = () if latest is None else ("--resume",)
        arguments = [sys.executable, "-c", REPORTING, str(steps.path), *command(text, out, *LONG, *resume)[3:]]
        with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            wait_for_a_moment(rng, out, steps, lambda p=process: p.poll() is None)
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
            # The save of one checkpoint may take until the next is due.
            assert lost[-1] <= 2 * CHECKPOINT_EVERY
        with capsys.disabled():
            print(f"kill {number}: {hit}; steps {began} to {now}, resuming from {latest}", flush=True)
    run(text, out, "--resume", *LONG)
    assert_same_run(out, whole)
    with capsys.disabled():
        print(f"{KILLS} kills in {(time.monotonic() - began_at) / 60:.1f} minutes, seed {seed}")
        print(*(f"  {count} hit {what}" for what, count in phases.most_common()), sep="\n")
        print(f"  steps lost: {min(lost)} to {max(lost)}, median {statistics.median(lost):g}")
        print(f"  bit for bit equal to the uninterrupted run, after {read_header(out).progress.step} steps")
