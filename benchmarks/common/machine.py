"""What a result was measured on."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from charjax.host.cpu import available_cores

FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
PACKAGES = ("charjax", "jax", "flax", "optax", "numpy", "torch", "equinox")
SMI_FIELDS = (
    "name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Returns the CPU, those of its features that speed up matrix products, the cores and the versions."""
    info: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            info.setdefault(name.strip(), value.strip())
    flags = info.get("flags", "").split()
    return {
        "processor": info.get("model name", platform.processor()),
        "features": [feature for feature in FEATURES if feature in flags],
        "cores": available_cores(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def nvidia_smi() -> dict[str, str]:
    """Returns driver, clocks, power and temperature of the first GPU, or under "missing" why they are unknown."""
    if not shutil.which("nvidia-smi"):
        return {"missing": "nvidia-smi is not installed"}
    query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return {"missing": (done.stderr or done.stdout).strip()[:200]}
    return dict(zip(SMI_FIELDS, (value.strip() for value in done.stdout.split(",")), strict=False))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
