"""Turns SIGINT and SIGTERM into a flag, so that a loop can save before it leaves."""

import signal
import threading
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
