"""Errors that the command line reports on one line, their exit codes, and argument checks."""

import errno
import operator
import os
import re
import reprlib
from pathlib import Path
from typing import Any

USER_ERROR = 2
# 128 + SIGPIPE, as a shell reports it; not every system defines that signal.
BROKEN_PIPE = 128 + 13
# What to do about an OS error caused by a particular file or its disk.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or files"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its permissions and those of its folder"),
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "make its file system writable",
    errno.ENAMETOOLONG: "shorten its name",
}
# What to do about an OS error that would occur with any file.
_REMEDIES_OF_LIMITS = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, which have too many files open",
    errno.ENOMEM: "free some memory, or raise the memory limit (ulimit -v)",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


class UserError(ValueError):
    """Reports a path, option, value or file that the user must change; the message says what is wrong and what to do.

    The command line prints it and exits with 2.

    Examples:
        >>> from charjax import TrainConfig, UserError
        >>> try:
        ...     TrainConfig(epochs=0)
        ... except UserError as error:
        ...     print(error)
        epochs must be above 0 and finite, not 0
    """


class Interrupted(KeyboardInterrupt):
    """Raised when a signal ends training, once the state is saved or, without a run folder, attached to the exception.

    It is not an `Exception`, so it also ends a loop over settings that catches exceptions.

    The command line prints the message and exits with 128 + signum.

    Attributes:
        signum: the signal number.
        state: the `TrainState` after the last step, if `fit` ran without a run folder.

    Examples:
        >>> from charjax import Interrupted
        >>> try:
        ...     raise Interrupted(2, "interrupted at step 5 of 10", state="what was learned")  # as fit does on Ctrl-C
        ... except Interrupted as error:
        ...     state = error.state
        >>> state
        'what was learned'
    """

    def __init__(self, signum: int, message: str, state: Any = None) -> None:
        super().__init__(message)
        self.signum, self.state = signum, state


def is_limit(error: OSError) -> bool:
    """Returns True if a process or system limit was reached, e.g. on open files, so no particular file is to blame."""
    return error.errno in _REMEDIES_OF_LIMITS


def remedy_for(error: OSError) -> str:
    """Returns advice on an OS error; empty if there is nothing to add to its message."""
    return (_REMEDIES | _REMEDIES_OF_LIMITS).get(error.errno or 0, "")


def in_short(value: object) -> str:
    """Formats a value for a message, on one line of bounded length; safe for arbitrary values read from a file."""
    return re.sub(r"\s*\n\s*", " ", _SHORT.repr(value))


def check_type(name: str, value: object, kind: type, advice: str) -> None:
    """Checks an argument's type, since callers may swap two arguments, or pass a path instead of what it contains.

    Raises:
        UserError: the type is wrong; the message ends with `advice`.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name} must be a {kind.__name__}, not {type(value).__name__}; {advice}")


def checked_path(name: str, value: Any) -> Path:
    """Converts a string or path-like object to a Path; raises a UserError for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} must be a path, not {type(value).__name__}")
    return Path(value)


def checked_checkpoint_folder(name: str, value: Any) -> Path:
    """Returns the path of a run folder that checkpoints are saved to or restored from.

    Raises:
        UserError: it is not a path, or it resolves to one that is not valid UTF-8, which Orbax cannot pass on to C++.
    """
    path = checked_path(name, value)
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: checkpoints need a path that is valid UTF-8; choose another --out") from None
    return path


def checked_whole(name: str, value: Any, least: int = 1) -> int:
    """Converts a whole number (or NumPy or JAX scalar) of at least `least` to an int; raises a UserError otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {in_short(value)}")
    return number
