"""The files in benchmarks/results: JSON with the date, the command and the machine in front."""

import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe

FOLDER = Path(__file__).parents[1] / "results"


class ResultsFile:
    """One file, which can be written many times: a run that is cut short leaves what it has measured.

    Attributes:
        path: the file, NAME-DATE.json or NAME-DATE-SUFFIX.json.
        content: what the next `save` writes.
    """

    def __init__(self, folder: Path, name: str, suffix: str = "", **content: Any) -> None:
        """Writes nothing yet; `name` begins with the benchmark's."""
        now = datetime.datetime.now(datetime.UTC)
        self.path = folder / f"{name}-{now:%Y-%m-%d-%H%M}{suffix and '-' + suffix}.json"
        command = f"python -m benchmarks.{name.partition('-')[0]} {shlex.join(sys.argv[1:])}".strip()
        self.content = {"date": f"{now:%Y-%m-%dT%H:%M:%SZ}", "command": command, "machine": describe(), **content}

    def save(self) -> Path:
        """Writes the whole file or nothing, and returns its path."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".tmp")
        whole.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(whole, self.path)
        return self.path
