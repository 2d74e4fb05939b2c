"""The command line: runs a command and tells of its failure in one line."""

import importlib
import logging
import os
import sys

from charjax.arguments import (
    EvalCommand,
    InfoCommand,
    NeuronsCommand,
    SampleCommand,
    ScoreCommand,
    TrainCommand,
    parse,
)
from charjax.collector import collecting_nothing
from charjax.errors import Interrupted, UserError
from charjax.report.printable import printable
from charjax.signals import leaving_at_once

USER_ERROR = 2
SIGINT, SIGPIPE = 2, 13
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
        The exit code: 0; 2 for what the user can mend; 128 + the signal's number where one ended it (130, 143).
    """
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        # What read the output, `head` for example, has enough. Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + SIGPIPE
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
    print(_one_line(f"charjax: {kind}{message}"), file=sys.stderr)
    return code


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
    _set_up_log(logging.INFO if isinstance(parsed.command, TrainCommand) else logging.WARNING)
    # Only now: jax and its company take seconds to import, and --help needs none of them.
    with leaving_at_once(), collecting_nothing():
        set_up = importlib.import_module("charjax.commands.set_up")
        module, name = _FUNCTION_OF[type(parsed.command)].split(":")
        run = getattr(importlib.import_module(f"charjax.commands.{module}"), name)
    set_up.keep_compiled_programs()
    if isinstance(parsed.command, TrainCommand):
        run(parsed.command, parsed.given)
    else:
        run(parsed.command)


def _require_current_directory() -> None:
    """Checks for the folder that relative paths start from.

    Raises:
        UserError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current directory was deleted; change to another one (cd) and try again") from error
