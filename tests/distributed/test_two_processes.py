"""Two training runs in one folder: the second is refused, and the first is not disturbed."""

import os
import signal
import subprocess
from contextlib import contextmanager

from helpers.real_runs import assert_same_run, command, environment, run
from helpers.signalled_run import signalled

from charjax.cli.main import main
from charjax.runs.lock import LOCK


@contextmanager
def stopped_halfway(text, out):
    """A run that has stopped itself, as by Ctrl-Z, after some checkpoints."""
    arguments = signalled(command(text, out), signal.SIGSTOP, at_call=20)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, env=environment(), **quiet) as process:
        try:
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            yield process
        finally:
            process.kill()


def refused(capsys, text, out, *more):
    """Starts another run, which must fail with a user error -> its one line."""
    assert main(command(text, out, *more)[3:]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    return errors.splitlines()[-1]


def test_the_second_is_refused_and_the_first_continues(uninterrupted, tmp_path, capsys):
    text, whole = uninterrupted
    out = tmp_path / "run"
    with stopped_halfway(text, out) as first:
        assert refused(capsys, text, out).startswith(f"charjax: error: {out} already exists; ")
        message = refused(capsys, text, out, "--resume")
        assert message.startswith(f"charjax: error: {out} is in use by process {first.pid} on ")
        assert message.endswith("; wait until it ends, or choose another --out")
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert_same_run(out, whole)
    assert not (out / LOCK).exists()


def test_the_lock_of_a_killed_process_does_not_block_a_resume(uninterrupted, tmp_path):
    text, whole = uninterrupted
    out = tmp_path / "run"
    with stopped_halfway(text, out) as first:
        first.kill()
    assert (out / LOCK).exists()
    run(text, out, "--resume")
    assert_same_run(out, whole)
