"""`python -m charjax`, and the command `charjax`."""

import sys

from charjax.signals import leaving_at_once


def main() -> None:
    """Runs the command line and exits with its code."""
    with leaving_at_once():
        from charjax.cli import main as run  # noqa: PLC0415 -- takes its time, in which the user may want to leave
    sys.exit(run())


if __name__ == "__main__":
    main()
