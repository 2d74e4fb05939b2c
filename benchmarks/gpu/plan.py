"""What is measured and in which order: the points that matter come first, because time may run out."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Size(NamedTuple):
    """A model and its batch: H, L and B."""

    hidden_dim: int
    hidden_layers: int
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All sizes of one run.

    Attributes:
        limits: the square matrices of the device's matmul, and the bytes of its copy.
        checks: H, B and T of the correctness checks; the first is for every implementation, the others leave out those
            that only serve as a reference.
        important: training steps that come before all others, beside PyTorch in all its forms.
        everyone: training steps at which every other peer is measured, and which are profiled and compiled otherwise.
        rest: training steps for whatever time is left.
        streams: texts generated at once.
        generation_hidden: H in generation, with 2 layers.
        length: characters per call in generation.
        training: a real training: options of `benchmarks.peers.fit.curve`.
        rounds: measurements of each peer, in turn with the others.
        round_seconds: least time of one.
        seconds: what the whole run may take.
    """

    limits: dict[str, int] = dataclasses.field(default_factory=lambda: {"size": 8192, "copied": 4 << 30})
    checks: tuple[tuple[int, int, int], ...] = (
        (128, 64, 24), (512, 64, 24), (256, 1024, 12), (512, 37, 1), (200, 37, 7), (1024, 3, 12),
    )  # fmt: skip
    important: tuple[Size, ...] = (
        Size(512, 2, 64), Size(512, 3, 1024), Size(512, 2, 1024),
        Size(512, 3, 64), Size(512, 2, 256), Size(512, 3, 256),
    )  # fmt: skip
    everyone: tuple[Size, ...] = (Size(512, 2, 64), Size(512, 3, 1024))
    rest: tuple[Size, ...] = ()
    streams: tuple[int, ...] = (1, 32, 1024, 4096)
    generation_hidden: tuple[int, ...] = (512, 128)
    length: int = 256
    training: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "seconds": 60.0, "every": 100, "hidden_dim": 512, "hidden_layers": 3, "dropout": 0.3, "batch_size": 1024,
            "learning_rate": 0.002,
        }
    )  # fmt: skip
    rounds: int = 5
    round_seconds: float = 0.1
    seconds: float = 450.0


def whole_plan() -> Plan:
    """Returns the plan for H in 128, 256, 512, 1024; L in 1, 2, 3; B in 64, 256, 1024."""
    # One batch size for all models before the next, so that a run cut short has seen many models.
    grid = (Size(h, n, b) for b, n, h in itertools.product((64, 1024, 256), (2, 3, 1), (256, 128, 1024, 512)))
    return Plan(rest=tuple(size for size in grid if size not in Plan.important))


def tiny_plan() -> Plan:
    """Returns a plan of every stage and every peer, at sizes that take a CPU no time."""
    return Plan(
        limits={"size": 64, "copied": 1 << 16}, checks=((8, 3, 5), (9, 2, 1)),
        important=(Size(8, 2, 8),), everyone=(Size(8, 2, 8),), rest=(Size(8, 1, 8),),
        streams=(1, 4), generation_hidden=(8,), length=16, rounds=1, round_seconds=0.0,
        training={
            "seconds": 1.0, "every": 20, "hidden_dim": 8, "hidden_layers": 2, "dropout": 0.1, "batch_size": 64,
            "learning_rate": 0.002,
        },
    )  # fmt: skip


class Clock:
    """The time that a run has; each stage may use it up to a share of the whole."""

    def __init__(self, seconds: float) -> None:
        self._start, self.limit = time.monotonic(), seconds

    def elapsed(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self._start

    def timeout(self) -> float:
        """Returns the seconds to wait for one answer: enough to compile, few enough to outlive a kernel that hangs."""
        return max(20.0, min(90.0, self.limit - self.elapsed()))

    def take(self, items: Iterable[Any], share: float, run: Callable[[Any], None]) -> list[Any]:
        """Runs items while another one like the longest so far fits, and returns those that were not run."""
        longest, left = 0.0, list(items)
        while left and self.elapsed() + longest < share * self.limit:
            begin = self.elapsed()
            run(left.pop(0))
            longest = max(longest, self.elapsed() - begin)
        return left
