"""A process killed at random moments and resumed ends like an uninterrupted one."""

import random
import signal
import subprocess
import time

import pytest
from helpers.real_runs import assert_same_run, command, environment, handled_by_default, run, started
from helpers.signalled_run import signalled

from charjax.runs.checkpoint import read_header


def test_killed_at_two_random_moments(uninterrupted, tmp_path):
    text, whole = uninterrupted
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng, out, resume = random.Random(seed), tmp_path / "run", ()
    progress = []
    for _ in range(2):
        with started(command(text, out, *resume), out, stdout=subprocess.DEVNULL) as process:
            before = read_header(out).progress.step
            # A few steps after start-up and compilation.
            while read_header(out).progress.step == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
        progress.append(read_header(out).progress.step)
        resume = ("--resume",)
    run(text, out, "--resume")
    assert progress == sorted(progress)
    assert progress[0] > 0
    assert_same_run(out, whole)


# On every commit test_fit.py sends signals within its process, and test_terminal.py closes the terminal.
@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_first(uninterrupted, tmp_path, signum):
    text, whole = uninterrupted
    out, errors = tmp_path / "run", tmp_path / "errors"
    with (
        errors.open("w") as file,
        handled_by_default(signum),
    ):
        arguments = signalled(command(text, out), signum, at_call=25)
        done = subprocess.run(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=file, check=False)
    assert done.returncode == 128 + signum
    *_, last = errors.read_text().splitlines()
    assert last.startswith(f"charjax: interrupted at step {read_header(out).progress.step} of ")
    assert "Traceback" not in errors.read_text()
    run(text, out, "--resume")
    assert_same_run(out, whole)
