"""Counts the CPU cores that this process may use."""

import os


def available_cores() -> int:
    """Returns the number of cores in the process's affinity mask (Linux), elsewhere of all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
