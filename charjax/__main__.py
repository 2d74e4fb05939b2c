"""`python -m charjax`, and the command `charjax`."""

import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    from charjax.cli import main as run  # noqa: PLC0415 -- inside the try of a Ctrl-C that comes early

    sys.exit(run())


if __name__ == "__main__":
    main()
