"""What the host knows of the steps taken: losses, speed, and how many steps to dispatch next."""

import time
from collections.abc import Callable

from charjax.train import TrainMetrics

CALL_SECONDS = 1.0
MOST_STEPS_PER_CALL = 1000


class Tally:
    """Reads metrics one call late, so that the device always has the next call to work on.

    Attributes:
        steps_per_call: steps that the next call should take: fitted so that a call lasts about a second, long
            enough to hide the host and to use the working memory again that a call asks the system for, short enough
            for a prompt answer to Ctrl-C.
        nats: sum of -log p over the labels read since the last evaluation.
        count: number of those labels.
        latest_loss: mean nats per character of the call read last; NaN before the first.
    """

    def __init__(
        self,
        *,
        steps_per_call: int | None = None,
        nats: float = 0.0,
        count: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.nats, self.count, self.latest_loss = nats, count, float("nan")
        self.steps_per_call = steps_per_call or 1
        self._fixed = steps_per_call is not None
        self._clock = clock
        self._pending: tuple[TrainMetrics, int] | None = None
        self._read_at: float | None = None
        self._timed_count, self._timed_seconds = 0, 0.0

    def push(self, metrics: TrainMetrics, num_steps: int) -> None:
        """Takes the metrics of a call that was just dispatched and waits for those of the one before."""
        earlier, self._pending = self._pending, (metrics, num_steps)
        if earlier is not None:
            self._read(*earlier)

    def flush(self) -> None:
        """Waits for the metrics of the last call; the time until the next read is not counted as training."""
        if self._pending is not None:
            self._read(*self._pending)
        self._pending, self._read_at = None, None

    @property
    def loss(self) -> float:
        """Mean nats per character since the last evaluation."""
        return self.nats / self.count if self.count else float("nan")

    @property
    def chars_per_second(self) -> float | None:
        """Characters trained on per second since the last evaluation; None before anything was timed."""
        return self._timed_count / self._timed_seconds if self._timed_seconds else None

    def restart(self) -> None:
        """Begins anew after an evaluation."""
        self.nats, self.count = 0.0, 0
        self._timed_count, self._timed_seconds = 0, 0.0

    def _read(self, metrics: TrainMetrics, num_steps: int) -> None:
        nats, count = float(metrics.nats), int(metrics.chars)
        now = self._clock()
        self.nats += nats
        self.count += count
        self.latest_loss = nats / count
        # The first call after a pause has nothing to be timed from: it may have compiled or waited.
        if self._read_at is not None:
            seconds = max(now - self._read_at, 1e-6)
            self._timed_count += count
            self._timed_seconds += seconds
            if not self._fixed:
                wanted = round(num_steps * CALL_SECONDS / seconds)
                self.steps_per_call = min(max(1, wanted), 2 * self.steps_per_call, MOST_STEPS_PER_CALL)
        self._read_at = now
