"""Turns SIGINT, SIGTERM and SIGHUP into a flag, so that a loop can save before it exits."""

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any


class SignalCatcher:
    """Records SIGINT, SIGTERM and SIGHUP inside a with block; a second SIGINT or SIGTERM has its original effect.

    SIGHUP, sent when a terminal closes, never counts as a second signal: the kernel and the shell both send it, and the
    end of a session sends SIGTERM along with it. An ignored signal, such as SIGHUP under nohup, stays ignored. Python
    delivers signals to the main thread only; in another thread this does nothing.

    Attributes:
        received: number of the first signal received, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if sys.platform == "win32" else [signal.SIGHUP]))
    _REPEATED_TO_EXIT = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        """Prepares to catch the given signals, by default all three."""
        self._signals = signals
        self.received: int | None = None
        self._was_asked_to_exit = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "SignalCatcher":
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in self._signals}
            # None stands for a handler that was not installed from Python and could not be restored.
            self._previous = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._previous:
                signal.signal(number, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        # Leave the handlers in place: Python complains about a pending signal whose handler was removed.
        if number in self._REPEATED_TO_EXIT and self._was_asked_to_exit:
            self._act_as_before(signal.Signals(number), frame)
            return
        self._was_asked_to_exit |= number in self._REPEATED_TO_EXIT
        if self.received is None:
            self.received = number

    def _act_as_before(self, number: signal.Signals, frame: FrameType | None) -> None:
        handler = self._previous.pop(number)
        signal.signal(number, handler)
        if callable(handler):
            handler(number, frame)
        else:
            signal.raise_signal(number)
