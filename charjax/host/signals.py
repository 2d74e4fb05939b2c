"""SIGINT, SIGTERM and SIGHUP: a flag for a loop that saves before it leaves, an end at once for imports."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class SignalCatcher:
    """While entered, SIGINT, SIGTERM and SIGHUP set `received`; a second SIGINT or SIGTERM acts as it did before.

    SIGHUP, which says that the terminal was closed, never does more: kernel and shell both send it, and a session that
    ends sends SIGTERM with it. A signal that was ignored, as SIGHUP is by nohup, stays ignored. Python delivers signals
    to the main thread alone; entered in another thread, this does nothing.

    Attributes:
        received: number of the first signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if sys.platform == "win32" else [signal.SIGHUP]))
    _REPEATED_TO_LEAVE = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._was_asked_to_leave = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "SignalCatcher":
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in self.SIGNALS}
            # None is a handler that was not set from Python, which could not be set again.
            self._previous = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._previous:
                signal.signal(number, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        # The handlers stay: Python complains of a signal that had come, and had its handler taken away before its turn.
        if number in self._REPEATED_TO_LEAVE and self._was_asked_to_leave:
            self._act_as_before(signal.Signals(number), frame)
            return
        self._was_asked_to_leave |= number in self._REPEATED_TO_LEAVE
        if self.received is None:
            self.received = number

    def _act_as_before(self, number: signal.Signals, frame: FrameType | None) -> None:
        handler = self._previous.pop(number)
        signal.signal(number, handler)
        if callable(handler):
            handler(number, frame)
        else:
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
