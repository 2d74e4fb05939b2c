"""Peers measured against each other: all are set up, then each round times them one after another."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.common.worker import Worker

Results = dict[str, dict[str, Any]]
"""What each peer reported, by its name; "cannot_run" holds the reason where there is nothing."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """Something to measure.

    Attributes:
        name: in the results.
        worker: the process that runs it.
        make: the function that sets it up, as MODULE:FUNCTION of `benchmarks.peers`.
        spec: that function's arguments, besides those that are the same for all peers.
    """

    name: str
    worker: Worker
    make: str
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)


class Contest:
    """Sets peers up and times them in turn.

    Attributes:
        given_up: peers that took their process down, and the reason; they are not tried again.
        without_graph: peers whose CUDA graph failed, and the reason; they run without one.
    """

    def __init__(self, timeout: Callable[[], float | None] = lambda: None) -> None:
        """Takes a function that returns how many seconds to wait for one answer."""
        self._timeout = timeout
        self.given_up: dict[str, str] = {}
        self.without_graph: dict[str, str] = {}

    def set_up(self, peers: Sequence[Peer], **request: Any) -> Results:
        """Sets all peers up by the same request; where a CUDA graph fails, without one."""
        results: Results = {}
        for peer in peers:
            if peer.name in self.given_up:
                results[peer.name] = {"cannot_run": f"not tried again after: {self.given_up[peer.name]}"}
                continue
            ready = [other for other in able(peers, results) if other.worker is peer.worker]
            results[peer.name] = self._set_up(peer, ready, request)
        return results

    def time_steps(
        self, peers: Sequence[Peer], results: Results, *, rounds: int, least_seconds: float, multiple: int = 1
    ) -> None:
        """Adds each peer's "seconds" per step, round by round, and their "median_seconds".

        Args:
            peers: those to time.
            results: of their set-up.
            rounds: how often each is timed.
            least_seconds: of a peer in a round.
            multiple: the number of steps in a round is a multiple of it.
        """
        steps: dict[str, int] = {}
        for peer in able(peers, results):
            once = self.ask(peer, results, "time", steps=multiple)
            steps[peer.name] = multiple * max(1, math.ceil(least_seconds / multiple / once.get("seconds", math.inf)))
        for _ in self.in_turn(peers, results, rounds, lambda peer: {"steps": steps[peer.name]}):
            pass
        for result in results.values():
            if "seconds" in result:
                result["median_seconds"] = statistics.median(result["seconds"])

    def in_turn(
        self, peers: Sequence[Peer], results: Results, rounds: int, request: Callable[[Peer], dict[str, Any]]
    ) -> Iterator[int]:
        """Yields after each round, in which every peer answered "time" and each figure joined its list in results."""
        for number in range(rounds):
            ready = able(peers, results)
            # Each round begins with another peer, so that none always follows the same one.
            first = number % max(1, len(ready))
            for peer in ready[first:] + ready[:first]:
                for name, value in self.ask(peer, results, "time", **request(peer)).items():
                    results[peer.name].setdefault(name, []).append(value)
            yield number

    def ask(self, peer: Peer, results: Results, do: str, **request: Any) -> dict[str, Any]:
        """Returns a peer's answer; an empty one, and the reason in the results, where it fails."""
        answer = peer.worker.ask(do, timeout=self._timeout(), peer=peer.name, **request)
        if "cannot_run" not in answer:
            return answer
        results[peer.name] |= answer
        if "ended" in answer:
            self.given_up[peer.name] = answer["cannot_run"]
        return {}

    def _set_up(self, peer: Peer, ready: list[Peer], request: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask_to_set_up(peer, request)
        ended = "ended" in answer
        if "cannot_run" in answer and peer.spec.get("graph") and peer.name not in self.without_graph:
            self.without_graph[peer.name] = answer["cannot_run"]
            answer = self._ask_to_set_up(peer, request)
            ended |= "ended" in answer
        if "ended" in answer:
            self.given_up[peer.name] = answer["cannot_run"]
        if ended:
            # The peers that the process had set up before were lost with it.
            for other in ready:
                self._ask_to_set_up(other, request)
        if peer.name in self.without_graph:
            answer["without_graph_because"] = self.without_graph[peer.name]
        return answer

    def _ask_to_set_up(self, peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
        spec = {**request, **peer.spec, **({"graph": False} if peer.name in self.without_graph else {})}
        return peer.worker.ask("set_up", timeout=self._timeout(), peer=peer.name, make=peer.make, **spec)


def able(peers: Sequence[Peer], results: Results) -> list[Peer]:
    """Returns the peers that were set up and have not failed since."""
    return [peer for peer in peers if "cannot_run" not in results.get(peer.name, {"cannot_run": ""})]
