"""The CPU: its instruction sets, and the cores and threads that this process may use."""

import importlib
import os
from pathlib import Path

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def available_cores() -> int:
    """Returns the number of cores in the process's affinity mask on Linux, elsewhere the total number of cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> frozenset[str]:
    """Returns the names of the CPU's features as Linux lists them, e.g. "avx2"; empty on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").split())


def keep_lapack_on_one_thread(platform: str) -> None:
    """Makes SciPy's LAPACK, which JAX calls on CPUs, run on one thread, unless the user has set the number of threads.

    Every device decomposes matrices for its copy of the initial weights. With multiple threads they wait for each
    other, for seconds on a busy machine; with one thread each, it takes a tenth of a second. Does nothing if LAPACK is
    already loaded, or if the platform of the devices is not "cpu".
    """
    if platform != "cpu" or _BLAS_THREADS in os.environ:
        return
    os.environ[_BLAS_THREADS] = "1"
    try:
        importlib.import_module("scipy.linalg.cython_lapack")
    finally:
        del os.environ[_BLAS_THREADS]
