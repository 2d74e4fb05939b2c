"""The program of a worker process: reads requests as JSON lines, answers in kind.

{"do": "describe"}                     what this side runs on
{"do": "check", ...}                   one implementation against the reference (JAX alone)
{"do": "train" | "generate", "name": NAME, "sizes": ..., "spec": ...}      sets a peer up
{"do": "time", "name": NAME, "steps": N}                                   -> {"seconds": ...}
{"do": "drop"}                         forgets all peers
"""

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

SIDES = {"jax": "benchmarks.gpu.jax_side", "torch": "benchmarks.gpu.torch_side"}
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory")

Peers = dict[str, Callable[[int], Any]]
"""Peers that are set up: each takes so many steps, and returns when they are done."""


def answer(side: Any, peers: Peers, request: dict[str, Any]) -> dict[str, Any]:
    """Does what a request asks for."""
    match request.pop("do"):
        case "time":
            if request["name"] not in peers:
                raise LookupError("it went with its process")
            start = time.perf_counter()
            peers[request["name"]](request["steps"])
            return {"seconds": time.perf_counter() - start}
        case "drop":
            peers.clear()
            gc.collect()
            side.release()
            return {}
        case "train" | "generate" as kind:
            name = request.pop("name")
            peers[name], reply = getattr(side, kind)(**request)
            return reply
        case kind:
            return getattr(side, kind)(**request)


def serve(side: Any, answers: Any) -> None:
    """Answers until the other end closes, or a failure leaves the device in doubt."""
    peers: Peers = {}
    for line in sys.stdin:
        try:
            reply = answer(side, peers, json.loads(line))
        except NotImplementedError as error:
            reply = {"does_not_serve": str(error)}
        except Exception as error:  # noqa: BLE001 -- a peer that cannot run is a result, and the others go on
            traceback.print_exc()
            reply = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"[:400]}
            # What fails on a device fails everything after it in the same process, but for a lack of memory.
            exhausted = any(sign in repr(error) for sign in OUT_OF_MEMORY)
            reply["ended"] = isinstance(error, RuntimeError) and not exhausted
        print(json.dumps(reply), file=answers, flush=True)
        if reply.get("ended"):
            return


if __name__ == "__main__":
    # Answers go where no library prints.
    to_parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(importlib.import_module(SIDES[sys.argv[1]]), to_parent)
