"""A process for JAX and one for PyTorch: a kernel that crashes or hangs takes its process with it, and not the run."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# Both processes hold memory of the device at the same time; the JAX that draws PyTorch's weights must hold none.
ENVIRONMENTS = {"jax": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}, "torch": {"JAX_PLATFORMS": "cpu"}}


class Worker:
    """One side's process, started when it is first asked and anew after it has ended.

    Attributes:
        side: "jax" or "torch".
    """

    def __init__(self, side: str, compiled: Path) -> None:
        """`compiled` is a folder for compiled programs, which a process that takes another's place need not redo."""
        self.side = side
        cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
        # What the user has set stays, but where PyTorch's process would take the device's memory for JAX.
        self._environment = (
            cache | ENVIRONMENTS["jax"] | os.environ | (ENVIRONMENTS["torch"] if side == "torch" else {})
        )
        self._process: subprocess.Popen[str] | None = None

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Returns:
            The answer; or "does_not_serve" or "failed" with a message, and "ended" where the process, with all that
            it had set up, is gone.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._answers.get(timeout=timeout)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.close()
            return {"failed": f"no answer within {timeout:.0f} s", "ended": True, "hung": True}
        reply = json.loads(line) if line else {"failed": self._last_words(), "ended": True}
        if reply.get("ended"):
            self.close()
        return reply  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                pipe.close()
            self._process = None

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.serve", self.side],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env=self._environment,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        # A pipe has no timeout of its own.
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, self._answers), daemon=True)
        self._reader.start()

    @staticmethod
    def _read(stdout: Any, answers: "queue.Queue[str]") -> None:
        for line in stdout:
            answers.put(line)
        answers.put("")

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return f"ended with {code}: {lines[-1][:300] if lines else 'nothing on stderr'}"
