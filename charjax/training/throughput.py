"""Measures loss and speed on the host and chooses how many steps to dispatch next."""

import math
import time
from collections.abc import Callable

from charjax.runs.metadata import Progress
from charjax.training.step import TrainMetrics

CALL_SECONDS = 1.0
MOST_STEPS_PER_CALL = 1000


class ThroughputMeter:
    """Accumulates metrics and measures speed, reading metrics one call late so that the device always has work queued.

    A call is timed from its dispatch, or from the arrival of the previous call's metrics if that is later, to the
    arrival of its own metrics. The first call may include compilation, so it does not count toward the speed unless it
    is the only call since the last evaluation.

    Attributes:
        steps_per_call: number of steps for the next call, chosen so that a call lasts about a second: long enough to
            hide the host's work and to reuse the memory that XLA allocates for each call, short enough to answer
            Ctrl-C promptly.
        nats: sum of -log p over the labels read since the last evaluation.
        count: number of those labels.
        skipped: steps skipped since the last evaluation because their loss or gradient was not finite.
        skipped_in_a_row: length of the longest run of skipped steps in the calls read so far.
        steps: steps read since the last evaluation, excluding skipped ones.
        grad_norms: sum of the gradient norms in those steps.
        calls: calls dispatched since the last evaluation.
        latest_loss: mean nats per character in the call read most recently; NaN before the first.
    """

    def __init__(
        self, progress: Progress, steps_per_call: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Starts the clock.

        Args:
            progress: provides the sums and the elapsed time to continue from.
            steps_per_call: fixed number of steps per call; by default it adapts to the speed.
            clock: function that returns the time in seconds.
        """
        self.restart()
        self.nats, self.count, self.skipped = progress.train_nats, progress.train_count, progress.train_skipped
        self.steps, self.grad_norms = progress.train_steps, progress.train_grad_norm
        self.latest_loss = math.nan
        self.steps_per_call = steps_per_call or 1
        self._fixed = steps_per_call is not None
        self._clock = clock
        self._pending: tuple[TrainMetrics, int, float] | None = None
        self._has_compiled = False
        self._begun_at = self._read_at = clock()
        self._started_at = self._begun_at - progress.elapsed_seconds

    def begin(self) -> None:
        """Records that a call is about to be dispatched."""
        self._begun_at = self._clock()

    def push(self, metrics: TrainMetrics, num_steps: int) -> int:
        """Takes the metrics of the call just dispatched and waits for those of the previous call.

        Returns:
            Number of steps skipped by the previous call.
        """
        self.calls += 1
        previous, self._pending = self._pending, (metrics, num_steps, self._begun_at)
        return 0 if previous is None else self._read(*previous)

    def flush(self) -> int:
        """Waits for the metrics of the last call.

        Returns:
            Number of steps skipped by the last call.
        """
        last, self._pending = self._pending, None
        return 0 if last is None else self._read(*last)

    @property
    def elapsed_seconds(self) -> float:
        """Wall-clock training time in seconds."""
        return self._clock() - self._started_at

    @property
    def loss(self) -> float:
        """Mean nats per character since the last evaluation."""
        return self.nats / self.count if self.count else math.nan

    @property
    def grad_norm(self) -> float | None:
        """Mean gradient norm since the last evaluation; None before the first step has been read."""
        return self.grad_norms / self.steps if self.steps else None

    @property
    def chars_per_second(self) -> float | None:
        """Characters trained on per second since the last evaluation; None before anything has been timed.

        If there has only been the first call, this includes its compilation time.
        """
        if self._timed_seconds:
            return self._timed_count / self._timed_seconds
        return self._compiling_count / self._compiling_seconds if self._compiling_seconds else None

    def restart(self) -> None:
        """Resets the sums and the speed, as after an evaluation."""
        self.nats, self.count, self.skipped, self.skipped_in_a_row, self.calls = 0.0, 0, 0, 0, 0
        self.steps, self.grad_norms = 0, 0.0
        self._timed_count, self._timed_seconds = 0, 0.0
        self._compiling_count, self._compiling_seconds = 0, 0.0

    def _read(self, metrics: TrainMetrics, num_steps: int, begun_at: float) -> int:
        nats, count, skipped = float(metrics.nats), int(metrics.chars), int(metrics.skipped)
        now = self._clock()
        self.nats += nats
        self.count += count
        self.skipped += skipped
        self.steps += num_steps - skipped
        self.grad_norms += float(metrics.grad_norm) * (num_steps - skipped)
        self.skipped_in_a_row = max(self.skipped_in_a_row, int(metrics.skipped_in_a_row))
        self.latest_loss = nats / count if count else math.nan
        seconds = max(now - max(begun_at, self._read_at), 1e-6)
        self._read_at = now
        self._time(count, num_steps, seconds)
        return skipped

    def _time(self, count: int, num_steps: int, seconds: float) -> None:
        if not self._has_compiled:
            self._has_compiled = True
            self._compiling_count, self._compiling_seconds = count, seconds
            return
        self._timed_count += count
        self._timed_seconds += seconds
        if not self._fixed:
            wanted = round(num_steps * CALL_SECONDS / seconds)
            self.steps_per_call = min(max(1, wanted), 2 * self.steps_per_call, MOST_STEPS_PER_CALL)
