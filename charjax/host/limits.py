"""Limits that a shell or a batch system puts on this process (`ulimit`)."""

import sys


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
