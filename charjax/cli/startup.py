"""Python's garbage collector, which importing JAX and its company keeps busy for nothing."""

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def collecting_nothing() -> Iterator[None]:
    """While entered, Python looks for no garbage.

    Made for imports: they make about a million objects, nearly all of which stay, and the collector would go over them
    again and again. Where it is turned off already, this does nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """While entered, SIGINT ends the process with one line and exit code 130.

    Made for imports, which have nothing to save: KeyboardInterrupt in the middle of one can come out as another
    error, or not at all, where C code made it. Where SIGINT is ignored or handled otherwise, as in the background of
    a shell, or in another thread than the main one, this does nothing.
    """
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or previous is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    with contextlib.suppress(OSError):  # a terminal that is gone
        os.write(sys.stderr.fileno(), b"charjax: interrupted\n")
    os._exit(128 + number)
