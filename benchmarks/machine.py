"""What a result was measured on."""

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

from charjax.host.cpu import available_cores

RESULTS = Path(__file__).parent / "results"
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
PACKAGES = ("charjax", "jax", "flax", "optax", "numpy", "torch", "equinox")


def describe() -> dict[str, Any]:
    """Processor, its features that matter to matrix products, cores, and versions."""
    info = {}
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes a result with its date, command and machine into a folder; -> the file."""
    now = datetime.datetime.now(datetime.UTC)
    module = Path(sys.argv[0]).stem
    command = " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{now:%Y-%m-%d-%H%M}.json"
    content = {"date": f"{now:%Y-%m-%dT%H:%M:%SZ}", "command": command, "machine": describe(), **result}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
