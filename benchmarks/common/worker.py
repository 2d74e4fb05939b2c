"""Worker processes: a kernel that crashes or hangs takes its process down, but not the benchmark."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = "from benchmarks.common.serve import main; main()"


class Worker:
    """A process for one or more peers, started by the first request and again by the first after it has ended."""

    def __init__(self, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        """Starts nothing yet.

        Args:
            environment: the process's whole environment; None for this process's.
            prefix: put in front of the command, such as taskset and its arguments.
        """
        self._command = [*prefix, sys.executable, "-c", PROGRAM]
        self._environment = os.environ if environment is None else environment
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        """Returns itself; leaving the block ends the process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self.close()

    def ask(self, do: str, *, timeout: float | None = None, **request: Any) -> dict[str, Any]:
        """Sends a request (see `serve`) and waits for the answer, for at most `timeout` seconds.

        Returns:
            The answer; or "cannot_run" with the reason, and "ended" where the process is gone with all its peers.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            print(json.dumps({"do": do, **request}), file=process.stdin, flush=True)
            line = self._answers.get(timeout=timeout)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self.close()
            return {"cannot_run": f"no answer within {timeout:.0f} s", "ended": True, "hung": True}
        answer = json.loads(line) if line else {"cannot_run": self._last_words(process), "ended": True}
        if "ended" in answer:
            self.close()
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                pipe.close()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env=self._environment,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        # Pipes have no timeout; queues have.
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, self._answers), daemon=True)
        self._reader.start()
        return self._process

    @staticmethod
    def _read(stdout: Any, answers: "queue.Queue[str]") -> None:
        for line in stdout:
            answers.put(line)
        answers.put("")

    def _last_words(self, process: "subprocess.Popen[str]") -> str:
        code = process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return f"ended with {code}: {lines[-1][:300] if lines else 'nothing on stderr'}"
