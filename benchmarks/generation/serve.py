"""The program of a peer's process: reads requests as JSON lines, answers in kind.

{"do": "set up", "sizes": ..., "length": N, "trial": S}    compiles and warms up -> what the peer tells
{"do": "logits", "ids": ...}                   -> the logits after a forced text
{"do": "draw", "seed": S}                      -> ids, a text of the measured length
{"do": "time", "seconds": S}                   -> seconds to the first character, and of whole texts
{"do": "judge", "sizes": ..., "ids": ...}, {"do": "peak", "dtype": ...}    JAX's side alone
"""

import importlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

SIDES = {
    "charjax": "benchmarks.generation.jax_side",
    "flax": "benchmarks.generation.jax_side",
    "torch loop": "benchmarks.generation.torch_side",
    "torch compiled": "benchmarks.generation.torch_side",
}
LEAST_FIRSTS, MOST_FIRSTS = 2, 7


class Served:
    """A peer, in one number format."""

    def __init__(self, kind: str, dtype: str) -> None:
        self.side, self.kind, self.dtype = importlib.import_module(SIDES[kind]), kind, dtype

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what a request asks for."""
        match request.pop("do"):
            case "set up":
                return self.set_up(**request)
            case "logits":
                return {"logits": self.logits(np.asarray(request["ids"], np.int32)).tolist()}
            case "draw":
                return {"ids": self.draw(self.length, request["seed"]).tolist()}
            case "time":
                return self.time(request["seconds"])
            case other:
                return getattr(self.side, other)(**request)  # type: ignore[no-any-return]

    def set_up(self, sizes: dict[str, Any], length: int, trial: float) -> dict[str, Any]:
        """Compiles what there is to compile, and runs it."""
        self.length = length
        self.draw, self.logits, about = self.side.PEERS[self.kind](sizes, self.dtype, trial)
        # What a first call takes beyond a second is what compiling takes, where it does not happen before.
        cold, warm = (_seconds(lambda: self.draw(length, 0)) for _ in range(2))
        self.draw(1, 0)
        return {"compile_seconds": cold - warm, **about}

    def time(self, seconds: float) -> dict[str, Any]:
        """Times a few texts of one character, and as many whole ones as make up so many seconds.

        Returns:
            "first_seconds" and "text_seconds", the medians; the former is what a text takes besides its steps.
        """
        first = [_seconds(lambda: self.draw(1, 0))]
        while len(first) < LEAST_FIRSTS or (len(first) < MOST_FIRSTS and sum(first) < seconds / 4):
            first.append(_seconds(lambda: self.draw(1, len(first))))
        texts = [_seconds(lambda: self.draw(self.length, 0))]
        while sum(texts) + texts[-1] / 2 < seconds:
            texts.append(_seconds(lambda: self.draw(self.length, len(texts))))
        return {
            "first_seconds": statistics.median(first),
            "text_seconds": statistics.median(texts),
        }


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def serve(peer: Served, answers: Any) -> None:
    """Answers until the other end closes."""
    for line in sys.stdin:
        try:
            reply = peer.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 -- a peer that cannot run is a result, and the others go on
            traceback.print_exc()
            reply = {"cannot_run": f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    # Answers go where no library prints.
    to_parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Served(*sys.argv[1:]), to_parent)
