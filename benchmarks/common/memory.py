"""The peak memory of a worker process, or of the accelerator that it uses."""

import contextlib
import re
import sys
from pathlib import Path


def reset_peak() -> float:
    """Makes the process's peak count from now, and returns the megabytes in use."""
    # A container may forbid it; the peak then counts from the process's start.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _process_megabytes("VmRSS")


def peak_megabytes(before: float) -> float:
    """Returns an accelerator's peak since the process started, else the process's peak above `before`."""
    device = _device_megabytes()
    return _process_megabytes("VmHWM") - before if device is None else device


def _device_megabytes() -> float | None:
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    if torch or not jax or jax.default_backend() == "cpu":
        return None
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else None


def _process_megabytes(field: str) -> float:
    """Returns a field of /proc/self/status; NaN where the system has no such file."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s*(\d+)", status.read_text() if status.exists() else "", re.M)
    return int(found[1]) / 1024 if found else float("nan")
