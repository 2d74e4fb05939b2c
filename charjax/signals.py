"""SIGINT and SIGTERM: a flag for a loop that saves before it leaves, an end at once for imports."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class SignalCatcher:
    """While entered, the first SIGINT or SIGTERM sets `received`; a second one acts as it did before.

    Python delivers signals to the main thread alone; entered in another thread, this does nothing.

    Attributes:
        received: number of the signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "SignalCatcher":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._catch) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


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
    os.write(sys.stderr.fileno(), b"charjax: interrupted\n")
    os._exit(128 + number)
