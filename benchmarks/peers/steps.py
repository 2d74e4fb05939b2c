"""What the peers are that take steps; `time` is the request that a worker process answers with them."""

import time
from collections.abc import Callable
from typing import Any

Run = Callable[[int], Any]
"""Takes so many steps and returns when they are done; in training, it returns the loss of the last."""


class Steps:
    """Anything that takes steps."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def time(self, steps: int) -> dict[str, float]:
        """Returns the seconds per step."""
        begin = time.perf_counter()
        self.run(steps)
        return {"seconds": (time.perf_counter() - begin) / steps}


def start(run: Run, losses: int) -> tuple[Steps, dict[str, Any]]:
    """Takes the first training steps, and returns the peer, and its first losses and first step's seconds."""
    begin = time.perf_counter()
    first = run(1)
    seconds = time.perf_counter() - begin
    return Steps(run), {"first_step_seconds": seconds, "losses": [first, *(run(1) for _ in range(losses - 1))]}
