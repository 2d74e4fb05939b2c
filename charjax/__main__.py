"""`python -m charjax`, and the command `charjax`."""

import gc
import sys

from charjax.cli.startup import collecting_nothing, leaving_at_once


def main() -> None:
    """Runs the command line and exits with its code."""
    with leaving_at_once(), collecting_nothing():
        from charjax.cli.main import main as run  # noqa: PLC0415 -- takes its time, in which the user may want to leave
    code = run()
    # Python looks for garbage once more while it ends, among all that was imported: it takes longer than the rest.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
