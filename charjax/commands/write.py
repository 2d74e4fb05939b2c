"""Text of a model on standard output."""

import sys

from charjax.report.printable import printable


def write(text: str) -> None:
    """Writes model text at once: made harmless for a terminal, unchanged for a file or a pipe."""
    if sys.stdout.isatty():
        sys.stdout.write(printable(text, sys.stdout.encoding))
    else:
        sys.stdout.buffer.write(text.encode("utf-8", errors="surrogateescape"))
    sys.stdout.flush()
