"""A peer in a process of its own, for the whole run."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Compile times are those of a first run.
COLD = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}


class Worker:
    """The process of one peer.

    Attributes:
        kind: which peer, a key of `serve.SIDES`.
        dtype: its number format.
        name: both.
    """

    def __init__(self, kind: str, dtype: str, folder: Path) -> None:
        """`folder` takes what compilers leave behind."""
        self.kind, self.dtype, self.name = kind, dtype, f"{kind} {dtype}"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generation.serve", kind, dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env=os.environ | COLD | {"TORCHINDUCTOR_CACHE_DIR": str(folder)},
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer; "cannot_run" holds the words of a peer that fails or has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)  # type: ignore[no-any-return]
        code = self._process.wait()
        self._errors.seek(0)
        last = [text for text in self._errors.read().splitlines() if text.strip()] or ["nothing on stderr"]
        return {"cannot_run": f"ended with {code}: {last[-1][:300]}"}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
