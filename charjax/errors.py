"""The one error type for what a user can mend: the command line prints it as a single line and exits with 2."""


class UserError(ValueError):
    """A path, flag, value or file content that the user has to change; the message says what and how."""
