"""Entry point of `python -m charjax` and of the command `charjax`."""

import gc
import sys

from charjax.cli.startup import exit_on_interrupt, garbage_collection_off, require_utf8


def main() -> None:
    """Runs the command-line interface and exits with its exit code."""
    with exit_on_interrupt():
        require_utf8()
        with garbage_collection_off():
            from charjax.cli.main import main as run  # noqa: PLC0415 -- slow, and the user may press Ctrl-C meanwhile
        code = run()
        # Python's final garbage collection would scan everything imported, which takes longer than the rest of
        # shutdown.
        gc.freeze()
        sys.exit(code)


if __name__ == "__main__":
    main()
