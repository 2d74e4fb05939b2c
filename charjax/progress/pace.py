"""Measures the progress and speed of training."""

import math
from collections import deque
from collections.abc import Callable

RECENT_SECONDS = 10.0


class Pace:
    """Step, loss and speed of a training run in progress.

    The speed covers about the last ten seconds. It excludes compilation, which precedes the first update, and
    evaluations, which are pauses.

    Attributes:
        total_steps: total number of steps in the run.
        step: steps dispatched.
        epochs: passes over the training text in total_steps.
        loss: latest training loss in nats per character; NaN before the first.
    """

    def __init__(
        self, total_steps: int, step: int, chars_per_step: int, epochs: float, clock: Callable[[], float]
    ) -> None:
        self.total_steps, self.step, self.epochs, self.loss = total_steps, step, epochs, math.nan
        self._chars_per_step, self._clock = chars_per_step, clock
        self._started_at = clock()
        self._updated_at: float | None = None
        self._in_flight = 0
        self._intervals: deque[tuple[float, int]] = deque()
        self._seconds, self._steps = 0.0, 0

    def update(self, step: int, loss: float) -> None:
        """Records that the steps up to `step` have been dispatched."""
        now = self._clock()
        if self._updated_at is not None:
            # The host dispatches one call ahead of the device: this time went into the previous call.
            self._count(now - self._updated_at, self._in_flight)
        self._in_flight = step - self.step
        self.step, self.loss, self._updated_at = step, loss, now

    def pause(self) -> None:
        """Excludes the time until the next update from the speed."""
        self._updated_at = None

    @property
    def epoch(self) -> float:
        """Passes over the training text so far."""
        return self.step * self.epochs / self.total_steps

    @property
    def elapsed_seconds(self) -> float:
        """Wall-clock time since the start."""
        return self._clock() - self._started_at

    @property
    def chars_per_second(self) -> float:
        """Recent number of characters trained on per second; NaN before the second update."""
        return self._steps_per_second * self._chars_per_step

    @property
    def seconds_left(self) -> float:
        """Seconds that the remaining steps will take at the recent speed; NaN if that is unknown."""
        speed = self._steps_per_second
        return (self.total_steps - self.step) / speed if speed > 0 else math.nan

    @property
    def _steps_per_second(self) -> float:
        return self._steps / self._seconds if self._intervals and self._seconds > 0 else math.nan

    def _count(self, seconds: float, steps: int) -> None:
        self._intervals.append((seconds, steps))
        self._seconds += seconds
        self._steps += steps
        while self._seconds - self._intervals[0][0] >= RECENT_SECONDS:
            seconds, steps = self._intervals.popleft()
            self._seconds -= seconds
            self._steps -= steps
