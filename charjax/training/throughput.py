"""What the host knows of the steps taken: losses, speed, and how many steps to dispatch next."""

import time
from collections.abc import Callable

from charjax.training.step import TrainMetrics

CALL_SECONDS = 1.0
MOST_STEPS_PER_CALL = 1000


class Tally:
    """Reads metrics one call late, so that the device always has the next call to work on.

    A call is timed from its dispatch, or from the arrival of the metrics before it where those came later, to the
    arrival of its own metrics. The very first call compiles: it is left out of the speed, unless no other was made
    since the last evaluation.

    Attributes:
        steps_per_call: steps that the next call should take: fitted so that a call lasts about a second, long
            enough to hide the host and to use the working memory again that a call asks the system for, short enough
            for a prompt answer to Ctrl-C.
        nats: sum of -log p over the labels read since the last evaluation.
        count: number of those labels.
        skipped: steps skipped since the last evaluation, because they were not finite.
        skipped_in_a_row: the most of them one after the other, so far as calls were read.
        latest_loss: mean nats per character of the call read last; NaN before the first.
    """

    def __init__(
        self,
        *,
        steps_per_call: int | None = None,
        nats: float = 0.0,
        count: int = 0,
        skipped: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.nats, self.count, self.latest_loss = nats, count, float("nan")
        self.skipped, self.skipped_in_a_row = skipped, 0
        self.steps_per_call = steps_per_call or 1
        self._fixed = steps_per_call is not None
        self._clock = clock
        self._pending: tuple[TrainMetrics, int, float] | None = None
        self._has_compiled = False
        self._begun_at = self._read_at = clock()
        self._timed_count, self._timed_seconds = 0, 0.0
        self._compiling_count, self._compiling_seconds = 0, 0.0

    def begin(self) -> None:
        """Takes note that a call is about to be dispatched."""
        self._begun_at = self._clock()

    def push(self, metrics: TrainMetrics, num_steps: int) -> None:
        """Takes the metrics of a call that was just dispatched and waits for those of the one before."""
        earlier, self._pending = self._pending, (metrics, num_steps, self._begun_at)
        if earlier is not None:
            self._read(*earlier)

    def flush(self) -> None:
        """Waits for the metrics of the last call."""
        if self._pending is not None:
            self._read(*self._pending)
        self._pending = None

    @property
    def loss(self) -> float:
        """Mean nats per character since the last evaluation."""
        return self.nats / self.count if self.count else float("nan")

    @property
    def chars_per_second(self) -> float | None:
        """Characters trained on per second since the last evaluation; None before anything was timed.

        Where there was no call but the first, the time that it took to compile is in it.
        """
        if self._timed_seconds:
            return self._timed_count / self._timed_seconds
        return self._compiling_count / self._compiling_seconds if self._compiling_seconds else None

    def restart(self) -> None:
        """Begins anew after an evaluation."""
        self.nats, self.count, self.skipped, self.skipped_in_a_row = 0.0, 0, 0, 0
        self._timed_count, self._timed_seconds = 0, 0.0
        self._compiling_count, self._compiling_seconds = 0, 0.0

    def _read(self, metrics: TrainMetrics, num_steps: int, begun_at: float) -> None:
        nats, count = float(metrics.nats), int(metrics.chars)
        now = self._clock()
        self.nats += nats
        self.count += count
        self.skipped += int(metrics.skipped)
        self.skipped_in_a_row = max(self.skipped_in_a_row, int(metrics.skipped_in_a_row))
        self.latest_loss = nats / count if count else float("nan")
        seconds = max(now - max(begun_at, self._read_at), 1e-6)
        self._read_at = now
        if not self._has_compiled:
            self._has_compiled = True
            self._compiling_count, self._compiling_seconds = count, seconds
            return
        self._timed_count += count
        self._timed_seconds += seconds
        if not self._fixed:
            wanted = round(num_steps * CALL_SECONDS / seconds)
            self.steps_per_call = min(max(1, wanted), 2 * self.steps_per_call, MOST_STEPS_PER_CALL)
