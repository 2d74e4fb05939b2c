"""Training whose terminal is closed, or whose output can no longer be written."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from helpers.real_runs import assert_same_run, command, environment, run, started

from charjax.runs.checkpoint import read_header

# Makes the terminal on standard input its controlling terminal, as a shell does, and becomes the command.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def terminal():
    """Opens a terminal whose output is read -> (its file descriptor, a function that closes it)."""
    controller, end = pty.openpty()
    closing, close_now = os.pipe()

    def read():
        while closing not in select.select([controller, closing], [], [])[0]:
            os.read(controller, 1 << 16)
        os.close(controller)

    reader = threading.Thread(target=read)
    reader.start()

    def close():
        os.close(end)
        os.write(close_now, b"x")
        reader.join()

    try:
        yield end, close
    finally:
        if reader.is_alive():
            close()
        os.close(closing)
        os.close(close_now)


def train_until_the_terminal_closes(text, out, on_hangup, errors=None):
    """Trains on a terminal that closes after the first checkpoint -> the exit code."""
    arguments = [sys.executable, "-c", ON_TERMINAL, on_hangup, *command(text, out)]
    with (
        pytest.MonkeyPatch.context() as patch,
        terminal() as (end, close),
    ):
        patch.setenv("TERM", "xterm-256color")
        options = {"stdin": end, "stdout": end, "stderr": errors or end, "start_new_session": True}
        with started(arguments, out, **options) as process:
            close()
            return process.wait()


@pytest.mark.parametrize("errors", ["in a file", pytest.param("on the terminal", marks=pytest.mark.slow)])
def test_a_closed_terminal_saves_first(uninterrupted, tmp_path, errors):
    text, whole = uninterrupted
    out, log = tmp_path / "run", tmp_path / "errors"
    with log.open("w") as file:
        code = train_until_the_terminal_closes(text, out, "SIG_DFL", file if errors == "in a file" else None)
    assert code == 128 + signal.SIGHUP
    step = read_header(out).progress.step
    assert 0 < step < read_header(whole).progress.step
    if errors == "in a file":
        assert log.read_text().splitlines()[-1].startswith(f"charjax: interrupted at step {step} of ")
        assert "Traceback" not in log.read_text()
    run(text, out, "--resume")
    assert_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["in a file", "on the terminal"])
def test_under_nohup_training_continues_without_its_terminal(uninterrupted, tmp_path, errors):
    text, whole = uninterrupted
    out, log = tmp_path / "run", tmp_path / "errors"
    with log.open("w") as file:
        code = train_until_the_terminal_closes(text, out, "SIG_IGN", file if errors == "in a file" else None)
    assert code == 0
    if errors == "in a file":
        # Two lines log what was chosen.
        assert log.read_text().splitlines()[1:] == [
            "charjax: standard output can no longer be written (Input/output error); training continues"
        ]
    assert_same_run(out, whole)


def test_a_closed_pipe_does_not_end_training(uninterrupted, tmp_path):
    text, whole = uninterrupted
    out, log = tmp_path / "run", tmp_path / "errors"
    with (
        log.open("w") as file,
        started(command(text, out), out, stdout=subprocess.PIPE, stderr=file) as process,
    ):
        process.stdout.close()
        assert process.wait() == 0
    assert log.read_text().splitlines()[1:] == [
        "charjax: standard output can no longer be written (Broken pipe); training continues"
    ]
    assert_same_run(out, whole)


@pytest.mark.parametrize(
    "redirection", ["<&- >&- 2>&-", pytest.param("> /dev/full 2> /dev/full", marks=pytest.mark.slow)]
)
def test_output_that_could_never_be_written_does_not_end_training(uninterrupted, tmp_path, redirection):
    """A full disk, or no standard streams at all, whose descriptors no file of the run must get."""
    text, whole = uninterrupted
    out = tmp_path / "run"
    shell = ["bash", "-c", f'exec "$@" {redirection}', "bash", *command(text, out)]
    assert subprocess.run(shell, env=environment(), check=False).returncode == 0
    assert_same_run(out, whole)


def test_other_commands_report_a_full_disk_in_one_line(uninterrupted):
    _, whole = uninterrupted
    shell = ["bash", "-c", '"$@" > /dev/full', "bash", sys.executable, "-m", "charjax", "info", str(whole)]
    done = subprocess.run(shell, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "charjax: error: cannot write to standard output (No space left on device)\n",
    )
