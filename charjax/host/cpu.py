"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """The cores that the process is allowed on, where the system tells (Linux), else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
