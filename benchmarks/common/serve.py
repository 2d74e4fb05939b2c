"""The program of a worker process: it reads requests as JSON lines and answers each with one line.

{"do": "set_up", "peer": NAME, "make": "MODULE:FUNCTION", ...}   sets up a peer: FUNCTION(...) -> (peer, answer)
{"do": METHOD, "peer": NAME, ...}                                the peer's METHOD(...)
{"do": "MODULE:FUNCTION", ...}                                   FUNCTION(...)
{"do": "memory"}                                                 -> {"peak_megabytes": ...} since the last set-up
{"do": "drop"}                                                   forgets all peers

MODULE is one of `benchmarks.peers`. The answer to what fails is {"cannot_run": MESSAGE}.
"""

import gc
import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.common.memory import peak_megabytes, reset_peak

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory")


_answers = sys.stdout


def requests() -> Iterator[dict[str, Any]]:
    """Yields the requests until the other end closes."""
    for line in sys.stdin:
        yield json.loads(line)


def reply(answer: dict[str, Any]) -> None:
    """Sends an answer."""
    print(json.dumps(answer), file=_answers, flush=True)


class Server:
    """The peers of a process, by name, and the memory in use before the last one was set up."""

    def __init__(self) -> None:
        self.peers: dict[str, Any] = {}
        self.before = 0.0

    def answer(self, do: str, peer: str = "", make: str = "", **rest: Any) -> dict[str, Any]:
        """Does what a request asks for, and returns the answer.

        Raises:
            LookupError: there is no such peer.
        """
        if do == "memory":
            return {"peak_megabytes": peak_megabytes(self.before)}
        if do == "drop":
            self.peers.clear()
            _free_memory()
            return {}
        if do == "set_up":
            if self.peers.pop(peer, None) is not None:
                _free_memory()
            # Before the peer's libraries are imported: they count as its memory.
            self.before = reset_peak()
            self.peers[peer], about = _function(make)(**rest)
            return about
        if not peer:
            return _function(do)(**rest)
        if peer not in self.peers:
            raise LookupError("it was lost with its process")
        return getattr(self.peers[peer], do)(**rest)


def serve() -> None:
    """Answers requests until the other end closes or an error leaves the device in an unknown state."""
    server = Server()
    for request in requests():
        try:
            result = server.answer(**request)
        except NotImplementedError as error:
            result = {"cannot_run": str(error), "refused": True}
        except Exception as error:  # noqa: BLE001 -- a peer that cannot run is a result; the others continue
            words = f"{type(error).__name__}: {error}".strip()
            result = {"cannot_run": words.splitlines()[0][:300]}
            # After a failure on a device everything in the process fails, unless it was only short of memory.
            if isinstance(error, RuntimeError) and not any(sign in repr(error) for sign in OUT_OF_MEMORY):
                result["ended"] = True
        reply(result)
        if "ended" in result:
            return


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)


def _free_memory() -> None:
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def main() -> None:
    """Serves; whatever libraries print goes to standard error, not between the answers."""
    global _answers  # noqa: PLW0603 -- a peer that calls `fit` answers from inside it
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve()
