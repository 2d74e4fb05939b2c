"""The file of results, written anew after every point: a run that is cut short leaves what it has measured."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine

SMI_FIELDS = (
    "name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu",
)  # fmt: skip


class Results:
    """JSON in a file named after the day and the device.

    Attributes:
        path: the file.
        content: what stands in it after the next `save`.
    """

    def __init__(self, folder: Path, device: str, **content: Any) -> None:
        now = datetime.datetime.now(datetime.UTC)
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")
        self.path = folder / f"gpu-{now:%Y-%m-%d-%H%M%S}-{name}.json"
        command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
        head = {"date": f"{now:%Y-%m-%dT%H:%M:%SZ}", "command": command, "machine": machine.describe()}
        self.content: dict[str, Any] = {**head, **content, "nvidia_smi": nvidia_smi(), "stages": {}}
        self.save()

    def stage(self, name: str) -> dict[str, Any]:
        """The part of a stage, whose "rows" and "not_run" it fills."""
        return self.content["stages"].setdefault(name, {"rows": [], "not_run": []})  # type: ignore[no-any-return]

    def save(self) -> None:
        """Writes the file whole or not at all."""
        whole = self.path.with_suffix(".tmp")
        whole.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(whole, self.path)


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks, power and temperature of the first device, or why they are not known."""
    if not shutil.which("nvidia-smi"):
        return {"missing": "nvidia-smi is not there"}
    query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return {"missing": (done.stderr or done.stdout).strip()[:200]}
    return dict(zip(SMI_FIELDS, (value.strip() for value in done.stdout.split(",")), strict=False))
