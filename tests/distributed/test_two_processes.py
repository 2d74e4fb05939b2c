"""Two trainings by the command line in one run folder: the second is told of the first, which does not notice."""

import signal
import subprocess
from contextlib import contextmanager

import pytest
from helpers.real_runs import assert_same_run, command, environment, run, started, uninterrupted_run

from charjax.runs.lock import LOCK

SHORT = ("--epochs", "3")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return uninterrupted_run(tmp_path_factory.mktemp("uninterrupted"), *SHORT)


@contextmanager
def halfway(text, out):
    """A run that is stopped in the middle, as by Ctrl-Z, so that it does not end too soon for the others."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(command(text, out, *SHORT), out, **options) as process:
        process.send_signal(signal.SIGSTOP)
        yield process


def refused(text, out, *more):
    """Starts another training, which must end as the user's mistake: -> its one line."""
    arguments = command(text, out, *SHORT, *more)
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    told = ("charjax: vocabulary", "charjax: LSTM implementation")
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith(told))
    return line


def test_the_second_is_refused_and_the_first_goes_on(uninterrupted, tmp_path):
    text, whole = uninterrupted
    out = tmp_path / "run"
    with halfway(text, out) as first:
        assert refused(text, out).startswith(f"charjax: error: {out} already exists; ")
        message = refused(text, out, "--resume")
        assert message.startswith(f"charjax: error: {out} is in use by process {first.pid} on ")
        assert message.endswith("; wait until it ends, or choose another --out")
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert_same_run(out, whole)
    assert not (out / LOCK).exists()


def test_a_killed_first_stands_in_nobodys_way(uninterrupted, tmp_path):
    text, whole = uninterrupted
    out = tmp_path / "run"
    with halfway(text, out) as first:
        first.kill()
    assert (out / LOCK).exists()
    run(text, out, "--resume", *SHORT)
    assert_same_run(out, whole)
