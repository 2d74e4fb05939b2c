"""Runs a command line and reports any failure on one line."""

import contextlib
import gc
import importlib
import io
import keyword
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from charjax.cli.arguments import COMMANDS, Command, SweepCommand, TrainCommand
from charjax.cli.option_parsing import parse
from charjax.cli.output import tolerate_lost_output
from charjax.cli.startup import check_memory_limits, exit_on_interrupt, garbage_collection_off, raise_on_interrupt
from charjax.errors import BROKEN_PIPE, USER_ERROR, Interrupted, UserError, remedy_for
from charjax.rendering.visible_text import one_line


def main(argv: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        The exit code: 0, 2 for a user error, or 128 + the signal that ended the command (129, 130, 143).
    """
    _prepare_streams()
    try:
        return _exit_code(sys.argv[1:] if argv is None else argv)
    finally:
        for file in (sys.stdout, sys.stderr):
            _drop_unwritable(file)


def _prepare_streams() -> None:
    """Reopens closed standard streams, and makes the others accept any text.

    Otherwise the next file opened would get the descriptor of a closed stream, to which C libraries write.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- stays open until exit
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


def _drop_unwritable(file: TextIO) -> None:
    """Drops buffered output that cannot be written; Python would retry at exit, complain and exit with code 120."""
    try:
        file.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def _exit_code(argv: list[str]) -> int:
    try:
        _run(argv)
    except BrokenPipeError:
        # The reader of the output, e.g. `head`, has closed it.
        return BROKEN_PIPE
    except (UserError, NotImplementedError, OSError, MemoryError, RuntimeError) as error:
        return _fail(_explain(error), USER_ERROR)
    except Interrupted as error:
        return _fail(str(error), 128 + error.signum)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    return 0


def _explain(error: Exception) -> str:
    """Returns the message for an error that is not a bug; re-raises any other."""
    if isinstance(error, OSError):
        remedy = remedy_for(error)
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{f'; {remedy}' if remedy else ''}"
    if isinstance(error, UserError | NotImplementedError):
        return str(error)
    reason = next(iter(str(error).splitlines()), "")
    # The last two are RuntimeErrors, raised by JAX and Python respectively.
    if isinstance(error, MemoryError) or reason.startswith(("RESOURCE_EXHAUSTED", "can't start new thread")):
        found = f" ({reason})" if reason else ""
        return f"out of memory{found}; make the model, the batch or the text smaller, or raise the limits (ulimit -a)"
    raise error


def _fail(message: str, code: int) -> int:
    kind = "error: " if code == USER_ERROR else ""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(_for_stderr(f"charjax: {kind}{message}"), file=sys.stderr)
    return code


def _for_stderr(message: str) -> str:
    return one_line(message, sys.stderr.encoding or "utf-8")


def _run(argv: list[str]) -> None:
    parsed = parse(argv)
    _require_current_directory()
    check_memory_limits()
    if isinstance(parsed.command, TrainCommand | SweepCommand):
        with tolerate_lost_output():
            _set_up_log(logging.WARNING if parsed.command.quiet else logging.INFO)
            run = _import_run(parsed.command)
            with raise_on_interrupt():
                run(parsed.command, parsed.given)
    else:
        _set_up_log(logging.WARNING)
        run = _import_run(parsed.command)
        with raise_on_interrupt():
            run(parsed.command)
            sys.stdout.flush()


def _require_current_directory() -> None:
    """Checks that the current directory, to which relative paths refer, still exists.

    Raises:
        UserError: the current directory was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current directory was deleted; change to a different one (cd) and try again") from error


class _OneLineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _for_stderr(super().format(record))


def _set_up_log(level: int) -> None:
    """Prints the library's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter("charjax: %(message)s"))
    logger = logging.getLogger("charjax")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    # Other libraries configure the root logger, which would print everything a second time.
    logger.propagate = False


def _import_run(command: Command) -> Callable[..., None]:
    """Imports a command's `run` function and, with it, JAX, which takes about a second."""
    (name,) = (name for name, kind in COMMANDS.items() if kind is type(command))
    is_first = "jax" not in sys.modules
    with exit_on_interrupt(), garbage_collection_off():
        _import_jax()
        importlib.import_module("charjax.cli.environment").set_up()
        module = f"{name}_" if keyword.iskeyword(name) else name
        run: Callable[..., None] = importlib.import_module(f"charjax.cli.commands.{module}").run
        if is_first:
            gc.freeze()  # nearly all of it stays, and the next collection would search it for a tenth of a second
    return run


def _import_jax() -> None:
    """Imports JAX, which reads its options from the environment.

    Raises:
        UserError: JAX rejects the value of an environment variable.
    """
    try:
        importlib.import_module("jax")
    except ValueError as error:
        named = re.search(r"\bjax_\w+", str(error), re.IGNORECASE)
        variable = named[0].upper() if named else ""
        if variable not in os.environ:
            raise
        raise UserError(f"{variable}={os.environ[variable]} is not a value that JAX accepts; unset it") from error
