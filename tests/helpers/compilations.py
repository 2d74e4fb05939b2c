"""Counts what JAX compiles."""

from contextlib import contextmanager

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextmanager
def compilations():
    """Yields a list of the programs compiled, or loaded from the persistent cache, since."""
    compiled = []

    def listen(event, seconds, *, fun_name="", **_):
        if event == EVENT:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
