"""What the stages of one run share, and how they measure peers against each other."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.plan import Clock, Plan
from benchmarks.gpu.results import Results
from benchmarks.gpu.worker import Worker


@dataclasses.dataclass(frozen=True)
class Peer:
    """Something to measure: its name in the results, the side that runs it, and what that side is told."""

    name: str
    side: str
    spec: dict[str, Any]


@dataclasses.dataclass
class Run:
    """One run of the benchmark.

    Attributes:
        plan: the sizes.
        clock: the time.
        results: the file.
        workers: a process per side that is there.
        about: what each side said of itself.
        say: prints a line of progress.
        given_up: peers that took their process with them, and with which words; they are not tried again.
        without_graph: peers whose CUDA graph failed, and with which words; they go on without.
    """

    plan: Plan
    clock: Clock
    results: Results
    workers: dict[str, Worker]
    about: dict[str, dict[str, Any]]
    say: Callable[[str], None]
    given_up: dict[str, str] = dataclasses.field(default_factory=dict)
    without_graph: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        return str(self.about["jax"]["platform"])

    def ask(self, side: str, **request: Any) -> dict[str, Any]:
        """Asks a side, and waits as long as the clock allows."""
        return self.workers[side].ask(self.clock.timeout(), **request)

    def measure(
        self, kind: str, sizes: dict[str, Any], peers: list[Peer], multiple: int, **more: Any
    ) -> dict[str, Any]:
        """Sets peers up, times them in turn, and drops them.

        Args:
            kind: what is set up, "train" or "generate".
            sizes: the point.
            peers: those to measure.
            multiple: steps are taken in multiples of this.
            more: further parts of the request that sets a peer up.

        Returns:
            "sizes" and, per peer, "seconds" per step of every round and their median, or why there are none.
        """
        row: dict[str, Any] = {"sizes": sizes, "peers": {}}
        able: list[Peer] = []
        for peer in peers:
            reply = self._set_up(kind, sizes, peer, able, **more)
            row["peers"][peer.name] = reply
            if "failed" not in reply and "does_not_serve" not in reply:
                able.append(peer)
        steps = {}
        for peer in able:
            once = self._time(peer, multiple, row)
            if once is not None:
                steps[peer.name] = multiple * max(1, math.ceil(self.plan.round_seconds / once))
        for number in range(self.plan.rounds):
            # Each round begins with another peer, so that none always follows the same one.
            turn = number % max(1, len(able))
            for peer in able[turn:] + able[:turn]:
                if peer.name in steps and "failed" not in row["peers"][peer.name]:
                    seconds = self._time(peer, steps[peer.name], row)
                    if seconds is not None:
                        row["peers"][peer.name].setdefault("seconds", []).append(seconds / steps[peer.name])
        for side in self.workers:
            self.ask(side, do="drop")
        for result in row["peers"].values():
            if "seconds" in result:
                result["median_seconds"] = statistics.median(result["seconds"])
        return row

    def _set_up(self, kind: str, sizes: dict[str, Any], peer: Peer, able: list[Peer], **more: Any) -> dict[str, Any]:
        """Asks a peer's side to set it up; where a CUDA graph fails, without one."""
        if peer.side not in self.workers:
            return {"does_not_serve": f"{peer.side} is not there"}
        if peer.name in self.given_up:
            return {"failed": f"not tried again after: {self.given_up[peer.name]}"}

        def ask(peer: Peer) -> dict[str, Any]:
            spec = peer.spec
            if peer.name in self.without_graph:
                spec = {**spec, "graph": False}
            return self.ask(peer.side, do=kind, sizes=sizes, name=peer.name, spec=spec, **more)

        reply = ask(peer)
        gone = reply.get("ended", False)
        if "failed" in reply and peer.spec.get("graph") and peer.name not in self.without_graph:
            self.without_graph[peer.name] = reply["failed"]
            reply = ask(peer)
            gone |= reply.get("ended", False)
        if reply.get("ended"):
            self.given_up[peer.name] = reply["failed"]
        if gone:
            # With the process went the peers that it had set up.
            for lost in able:
                if lost.side == peer.side:
                    ask(lost)
        if peer.name in self.without_graph:
            reply["without_graph_because"] = self.without_graph[peer.name]
        return reply

    def _time(self, peer: Peer, steps: int, row: dict[str, Any]) -> float | None:
        """Seconds that steps take; None, and the reason in the row, where they fail."""
        reply = self.ask(peer.side, do="time", name=peer.name, steps=steps)
        if "seconds" in reply:
            return float(reply["seconds"])
        row["peers"][peer.name].update(reply)
        if reply.get("ended"):
            self.given_up[peer.name] = reply["failed"]
        return None
