"""The CPU: its instruction sets, and the cores that this process may use."""

import os
from pathlib import Path


def available_cores() -> int:
    """Returns the number of cores in the process's affinity mask (Linux), elsewhere of all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> frozenset[str]:
    """Returns the names of the CPU's features as Linux lists them, such as "avx2"; elsewhere none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").split())
