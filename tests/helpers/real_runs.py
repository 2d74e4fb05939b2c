"""Trainings in processes of their own, by the command line, for tests that stop them in the middle."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import jax

from charjax.distributed.mesh import make_mesh
from charjax.model import CharLSTM
from charjax.runs.checkpoint import restore_checkpoint
from charjax.runs.checkpoint_header import read_header
from charjax.runs.model_file import load_params
from charjax.train_state import abstract_train_state
from charjax.training.optimizer import make_optimizer
from helpers.compiler_flags import xla_flags
from helpers.small_run import TEXT, assert_same

OPTIONS = """
    --hidden-dim 16 --hidden-layers 2 --dropout 0.3 --batch-size 4 --seq-len 20 --epochs 3
    --eval-every 15 --checkpoint-every 8 --steps-per-call 1 --sample-length 10
"""


def environment(**more):
    """Returns the environment of a training on one device."""
    return {**os.environ, "XLA_FLAGS": xla_flags(1), **more}


def command(text, out, *more):
    return [sys.executable, "-m", "charjax", "train", str(text), "--out", str(out), *OPTIONS.split(), *more]


def run(text, out, *more):
    """Trains to the end."""
    done = subprocess.run(command(text, out, *more), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def uninterrupted_run(folder, *more):
    """A run that is not interrupted -> (its text, its folder)."""
    text = folder / "coffee.txt"
    text.write_text(TEXT)
    run(text, folder / "run", *more)
    return text, folder / "run"


@contextmanager
def started(arguments, out, **options):
    """Starts a run, and waits until it has a complete checkpoint; it does not outlast the block."""
    with subprocess.Popen(arguments, env=environment(), **options) as process:
        try:
            while not sealed_steps(out):
                assert process.poll() is None
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@contextmanager
def handled_by_default(signum):
    """Processes started within do with a signal what is usual, also where the tests run under nohup."""
    before = signal.signal(signum, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signum, before)


def sealed_steps(out):
    """The steps of the complete checkpoints, in rising order."""
    folders = [seal.parent.name for seal in (out / "checkpoints").glob("*/charjax_seal.json")]
    return sorted(int(name) for name in folders if name.isdigit())


def last_state(out):
    """The whole state of the last checkpoint."""
    info = read_header(out).info
    model = CharLSTM.from_config(info.model, info.vocab.size)
    optimizer = make_optimizer(info.train, total_steps=1)  # its state looks the same for any number of steps
    mesh = make_mesh(jax.devices()[:1])
    abstract = abstract_train_state(model, optimizer, batch_size=info.train.batch_size, mesh=mesh)
    return restore_checkpoint(out, abstract)[0]


def metrics(out):
    """metrics.jsonl without what is timed."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [line.partition(', "chars_per_second"')[0] for line in lines]


def assert_same_run(ours, theirs):
    """Checks that two runs ended alike, bit for bit: step, best step, state, best parameters, metrics and samples."""
    mine, other = read_header(ours).progress, read_header(theirs).progress
    assert (mine.step, mine.best_step, mine.best_val_loss) == (other.step, other.best_step, other.best_val_loss)
    assert_same(last_state(ours), last_state(theirs))
    assert_same(load_params(ours)[0], load_params(theirs)[0])
    assert metrics(ours) == metrics(theirs)
    assert (ours / "samples.txt").read_bytes() == (theirs / "samples.txt").read_bytes()
