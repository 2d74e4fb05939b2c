"""Prepares the process for importing JAX and other large modules: UTF-8, limits, garbage collection, Ctrl-C."""

import codecs
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType

from charjax.errors import UserError
from charjax.host.limits import limit_on, space_for_programs

# Bytes that should remain for arrays, in addition to the compiled programs.
_LEAST_MEMORY = 200_000_000

_Handler = Callable[[int, FrameType | None], None]


def require_utf8() -> None:
    """Restarts the process in Python's UTF-8 mode if the locale supports only ASCII.

    Python enters that mode by itself in such a locale, unless told not to (PYTHONUTF8=0). Outside that mode, options,
    paths, standard streams and files would all have to be decoded again.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def check_memory_limits() -> None:
    """Checks that the memory limits leave room for JAX, which otherwise aborts or hangs for a minute or longer.

    Raises:
        UserError: a limit is too low.
    """
    for name, option in (("AS", "v"), ("DATA", "d")):
        limit, least = limit_on(name), least_memory_limit(name)
        if limit is not None and limit < 1024 * least:
            raise UserError(
                f"JAX needs more memory than the {limit // 1024:,} kB that ulimit -{option} allows; "
                f"raise the limit with ulimit -{option} {least}"
            )


def least_memory_limit(name: str) -> int:
    """Returns the minimum for a limit ("AS" or "DATA") in kilobytes, rounded up to a multiple of 100."""
    return -(-(space_for_programs(name) + _LEAST_MEMORY) // 102_400) * 100


@contextlib.contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Disables Python's garbage collector inside a with block, then restores its previous state.

    Imports create about a million objects, nearly all long-lived; the collector would scan them again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exit_on_interrupt() -> AbstractContextManager[None]:
    """Makes SIGINT end the process with a one-line message and exit code 130 inside a with block.

    Meant for imports, when there is nothing to save: a KeyboardInterrupt in the middle of one may surface as another
    error or, in C code, not at all. Does nothing outside the main thread, or if SIGINT is ignored or has another
    handler, as in background jobs of a shell.
    """
    return _replacing(signal.default_int_handler, exit_at_once)


def raise_on_interrupt() -> AbstractContextManager[None]:
    """Makes SIGINT raise a KeyboardInterrupt again inside a with block within that of `exit_on_interrupt`."""
    return _replacing(exit_at_once, signal.default_int_handler)


@contextlib.contextmanager
def _replacing(current: _Handler, other: _Handler) -> Iterator[None]:
    """Replaces the SIGINT handler inside a with block; does nothing if the handler is another than `current`."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not current:
        yield
        return
    signal.signal(signal.SIGINT, other)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, current)


def exit_at_once(number: int, frame: FrameType | None = None) -> None:
    """Handles a signal by ending the process with a one-line message and without cleaning up."""
    del frame
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(sys.stderr.fileno(), b"charjax: interrupted\n")
    os._exit(128 + number)
