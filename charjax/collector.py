"""Python's garbage collector, which importing JAX and its company keeps busy for nothing."""

import contextlib
import gc
from collections.abc import Iterator


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
