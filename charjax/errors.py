"""The errors that the command line tells in one line."""

import reprlib

USER_ERROR = 2
# As shells have it for what SIGPIPE ended, which other systems may not know.
BROKEN_PIPE = 128 + 13
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


class UserError(ValueError):
    """A path, flag, value or file content that the user has to change; the message says what and how.

    The command line prints it and exits with `USER_ERROR`.
    """


class Interrupted(Exception):  # noqa: N818 -- nothing went wrong
    """Training ended early on a signal, after its state was saved.

    The command line prints the message and exits with 128 + signum.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def in_short(value: object) -> str:
    """A value as messages show it: of one line, and of no great length whatever a file holds."""
    return _SHORT.repr(value)
