"""The command line: runs a command and tells of its failure in one line."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TextIO

from charjax.cli.arguments import (
    Command,
    EvalCommand,
    InfoCommand,
    NeuronsCommand,
    SampleCommand,
    ScoreCommand,
    TrainCommand,
)
from charjax.cli.option_parsing import parse
from charjax.cli.output import lasting_output
from charjax.cli.startup import collecting_nothing, leaving_at_once
from charjax.errors import BROKEN_PIPE, USER_ERROR, Interrupted, UserError
from charjax.rendering.visible_text import printable

SIGINT = 2
_FUNCTION_OF: dict[type, str] = {
    TrainCommand: "train:train",
    SampleCommand: "sample:sample",
    EvalCommand: "evaluate:evaluate_text",
    ScoreCommand: "score:score_text",
    InfoCommand: "info:show_info",
    NeuronsCommand: "neurons:show_neurons",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The exit code: 0; 2 for what the user can mend; 128 + the signal's number where one ended it (129, 130, 143).
    """
    _open_what_is_closed()
    try:
        return _exit_code(sys.argv[1:] if argv is None else argv)
    finally:
        for file in (sys.stdout, sys.stderr):
            _let_go(file)


def _open_what_is_closed() -> None:
    """Opens standard streams that are closed: a file of the run would get their number, and what C libraries write."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- open to the end


def _exit_code(argv: list[str]) -> int:
    try:
        _run(argv)
    except BrokenPipeError:
        # What read the output, `head` for example, has enough.
        return BROKEN_PIPE
    except (UserError, NotImplementedError) as error:
        return _fail(str(error), USER_ERROR)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; check its permissions" if isinstance(error, PermissionError) else ""
        return _fail(f"{where}{error.strerror or error}{advice}", USER_ERROR)
    except Interrupted as error:
        return _fail(str(error), 128 + error.signum)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + SIGINT)
    return 0


def _fail(message: str, code: int) -> int:
    kind = "error: " if code == USER_ERROR else ""
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(_one_line(f"charjax: {kind}{message}"), file=sys.stderr)
    return code


def _let_go(file: TextIO) -> None:
    """Drops what cannot be written: Python would try once more at exit, complain, and exit with 120."""
    try:
        file.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def _one_line(message: str) -> str:
    """A message harmless for a terminal, whatever names of files and options are in it."""
    return printable(message, sys.stderr.encoding or "utf-8").replace("\n", "\\n")


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _one_line(super().format(record))


def _set_up_log(level: int) -> None:
    """Shows what the library logs on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("charjax: %(message)s"))
    logger = logging.getLogger("charjax")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    # Other libraries set the root logger up, which would print everything once more.
    logger.propagate = False


def _run(argv: list[str]) -> None:
    parsed = parse(argv)
    _require_current_directory()
    if isinstance(parsed.command, TrainCommand):
        with lasting_output():
            _set_up_log(logging.INFO)
            _import_function(parsed.command)(parsed.command, parsed.given)
    else:
        _set_up_log(logging.WARNING)
        _import_function(parsed.command)(parsed.command)
        sys.stdout.flush()


def _import_function(command: Command) -> Callable[..., None]:
    """What runs a command; with it come jax and its company, which take seconds to import."""
    with leaving_at_once(), collecting_nothing():
        set_up = importlib.import_module("charjax.cli.environment")
        module, name = _FUNCTION_OF[type(command)].split(":")
        run: Callable[..., None] = getattr(importlib.import_module(f"charjax.cli.commands.{module}"), name)
    set_up.keep_compiled_programs()
    return run


def _require_current_directory() -> None:
    """Checks for the folder that relative paths start from.

    Raises:
        UserError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current directory was deleted; change to another one (cd) and try again") from error
