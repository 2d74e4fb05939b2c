"""Errors that the command line reports in one line, and its exit codes for them."""

import reprlib

USER_ERROR = 2
# 128 + SIGPIPE, as a shell reports it; not every system has that signal.
BROKEN_PIPE = 128 + 13
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


class UserError(ValueError):
    """A path, option, value or file that the user has to change; the message says what is wrong and what to do.

    The command line prints it and exits with `USER_ERROR`.
    """


class Interrupted(KeyboardInterrupt):
    """Training ended early on a signal, after its state was saved.

    Not an `Exception`, so that it also ends a sweep over settings that catches those.

    The command line prints the message and exits with 128 + signum.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def in_short(value: object) -> str:
    """Formats a value for a message: on one line and of bounded length, whatever a file contains."""
    return _SHORT.repr(value)
