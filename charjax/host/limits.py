"""Reads the limits that a shell or a batch system imposes on this process (`ulimit`)."""

import sys

from charjax.host.cpu import available_cores

# Bytes of address space (`ulimit -v`) and of private memory (`ulimit -d`) that training needs with jax 0.10, not
# counting the model itself, with a margin; and threads per core, each with its own stack.
_PROGRAMS, _THREADS_PER_CORE = {"AS": 1_100_000_000, "DATA": 700_000_000}, 5
_USUAL_STACK = 8 << 20


def limit_on(name: str) -> int | None:
    """Returns a limit in its own unit; None if no limit is set, as on Windows.

    Args:
        name: the limit's name in `resource` without its prefix, e.g. "AS" for the address space in bytes.
    """
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 -- not on Windows

    limit, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return None if limit == resource.RLIM_INFINITY else limit


def space_for_programs(name: str) -> int:
    """Estimates how many bytes of a limit ("AS" or "DATA") are used by libraries, compiled programs and stacks."""
    return _PROGRAMS[name] + _THREADS_PER_CORE * available_cores() * (limit_on("STACK") or _USUAL_STACK)
