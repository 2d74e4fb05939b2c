"""A real process, killed at random moments and resumed, ends as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import pytest
from small_run import TEXT, assert_same

from charjax.checkpoint import load_params, read_header, restore_checkpoint
from charjax.model import CharLSTM
from charjax.optimizer import make_optimizer
from charjax.sharding import make_mesh
from charjax.train_state import abstract_train_state

OPTIONS = """
    --hidden-dim 16 --hidden-layers 2 --dropout 0.3 --batch-size 4 --seq-len 20 --epochs 6
    --eval-every 15 --checkpoint-every 4 --steps-per-call 1 --sample-length 10
"""


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_of_their_own(tmp_path_factory):
    """A process killed while it writes to the compilation cache leaves half a file, which no other must read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def environment():
    return {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def command(text, out, *more):
    return [sys.executable, "-m", "charjax", "train", str(text), "--out", str(out), *OPTIONS.split(), *more]


def run(text, out, *more):
    done = subprocess.run(command(text, out, *more), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def uninterrupted(_compiled_programs_of_their_own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    text = folder / "coffee.txt"
    text.write_text(TEXT)
    run(text, folder / "run")
    return text, folder / "run"


def final(out):
    """What the last checkpoint of a run says, the best parameters, and the whole last state."""
    _, info, progress = read_header(out)
    return progress.step, progress.best_step, progress.best_val_loss, load_params(out)[0], last_state(out, info)


def last_state(out, info):
    model = CharLSTM.from_config(info.model, info.vocab.size)
    optimizer = make_optimizer(info.train, total_steps=1)  # its state looks the same for any number of steps
    mesh = make_mesh(jax.devices()[:1])
    return restore_checkpoint(out, abstract_train_state(model, optimizer, batch_size=info.train.batch_size, mesh=mesh))[
        0
    ]


def started(text, out, *more):
    """Starts a run and waits until it has saved its first checkpoint."""
    process = subprocess.Popen(command(text, out, *more), env=environment(), stdout=subprocess.DEVNULL)
    while not list((out / "checkpoints").glob("*/charjax_seal.json")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_killed_at_three_random_moments(uninterrupted, tmp_path):
    text, whole = uninterrupted
    draw, out, resume = random.Random(), tmp_path / "run", ()
    progress = []
    for _ in range(3):
        process = started(text, out, *resume)
        before = read_header(out).progress.step
        # A few steps after whatever point start-up and compilation leave it at.
        while read_header(out).progress.step == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.wait()
        progress.append(read_header(out).progress.step)
        resume = ("--resume",)
    run(text, out, "--resume")
    assert progress == sorted(progress)
    assert progress[0] > 0
    ours, theirs = final(out), final(whole)
    assert ours[:3] == theirs[:3], progress
    assert_same(ours[3], theirs[3])
    assert_same(ours[4], theirs[4])
    steps = [line.split(",")[0] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line.split(",")[0] for line in (out / "metrics.jsonl").read_text().splitlines()] == steps


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(uninterrupted, tmp_path, signum):
    text, whole = uninterrupted
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(text, out), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((out / "checkpoints").glob("*/charjax_seal.json")):
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == 128 + signum
    assert errors.splitlines()[-1].startswith(f"charjax: interrupted at step {read_header(out).progress.step} of ")
    assert "Traceback" not in errors
    run(text, out, "--resume")
    ours, theirs = final(out), final(whole)
    assert ours[:3] == theirs[:3]
    assert_same(ours[3], theirs[3])
    assert_same(ours[4], theirs[4])
