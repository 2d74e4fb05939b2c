"""Where the time of a step goes on a GPU: what `jax.profiler` recorded of its kernels and the gaps between them."""

import collections
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.peers.steps import Steps

MOST_KERNELS = 25


class ProfiledSteps(Steps):
    """Steps in JAX that can be profiled."""

    def profile(self, steps: int) -> dict[str, Any]:
        """Takes steps under the profiler, which makes XLA launch kernels one by one instead of as CUDA graphs.

        Returns:
            Figures of one step in seconds: the device's "span" from the first kernel to the end of the last and how
            long it was "busy", "launches", and of the kernels that took longest "seconds", "launches" and "name";
            "refused" is given where nothing was recorded, as on a CPU.
        """
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(steps)
            (path,) = Path(folder).glob("**/*.xplane.pb")
            data = ProfileData.from_file(str(path))
        events = [
            (event.start_ns, event.duration_ns, event.name)
            for plane in data.planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
        if not events:
            return {"cannot_run": "the profiler recorded no kernels", "refused": True}
        return _summary(sorted(events), steps)


def _summary(events: list[tuple[float, float, str]], steps: int) -> dict[str, Any]:
    busy, end = 0.0, 0.0
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for start, duration, name in events:
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
        # Numbers tell apart copies of one operation.
        kind = re.sub(r"[._]?\d+", "", name)[:80]
        totals[kind][0] += duration
        totals[kind][1] += 1
    kernels = [
        {"seconds": seconds / steps / 1e9, "launches": count / steps, "name": kind}
        for kind, (seconds, count) in sorted(totals.items(), key=lambda item: -item[1][0])
    ]
    return {
        "span": (end - events[0][0]) / steps / 1e9,
        "busy": busy / steps / 1e9,
        "launches": len(events) / steps,
        "kernels": kernels[:MOST_KERNELS],
    }
