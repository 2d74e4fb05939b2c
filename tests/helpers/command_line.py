"""Runs commands in this process, as a user does in a shell."""

import contextlib
import io
import logging

from charjax.cli.main import main

# A failed training may have logged its choice before.
LOGGED = "charjax: vocabulary"


def shows(capsys, *argv, warns=""):
    """Runs a command -> its output."""
    capsys.readouterr()
    code = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert warns in err
    return out


def fails(capsys, *argv):
    """Runs a command that must fail because of a user's mistake -> its message, without the prefix."""
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if not line.startswith(LOGGED))
    assert line.startswith("charjax: error: ")
    return line.removeprefix("charjax: error: ")


def run_in_fixture(*argv):
    """Runs a command where capsys cannot be used, and restores the log -> its output and errors."""
    logger = logging.getLogger("charjax")
    before = logger.handlers[:], logger.level, logger.propagate
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in argv])
    logger.handlers[:], logger.level, logger.propagate = before
    assert code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()
