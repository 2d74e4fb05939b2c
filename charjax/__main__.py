"""`python -m charjax`, and the command `charjax`."""

import sys

from charjax.cli import main as run


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
