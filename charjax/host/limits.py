"""Limits that a shell or a batch system puts on this process (`ulimit`)."""

import sys

from charjax.host.cpu import available_cores

# Memory limits: on the address space (`ulimit -v`) and on private memory (`ulimit -d`). Bytes of each that training
# takes with jax 0.10 before the model itself counts, with a margin; and threads per core, each with its own stack.
_PROGRAMS, _THREADS_PER_CORE = {"AS": 1_100_000_000, "DATA": 700_000_000}, 5
_USUAL_STACK = 8 << 20


def limit_on(name: str) -> int | None:
    """Returns a limit in its unit; None if there is none, as on Windows.

    Args:
        name: the limit's name in `resource` without its prefix, such as "AS" for the address space in bytes.
    """
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 -- not on Windows

    limit, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return None if limit == resource.RLIM_INFINITY else limit


def space_for_programs(name: str) -> int:
    """Returns about how many bytes of a limit ("AS" or "DATA") libraries, compiled programs and stacks take."""
    return _PROGRAMS[name] + _THREADS_PER_CORE * available_cores() * (limit_on("STACK") or _USUAL_STACK)
