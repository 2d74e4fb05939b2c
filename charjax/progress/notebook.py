"""Progress in a notebook: a bar and a loss curve that update in place."""

import html
import math
import sys
import time
from collections.abc import Callable
from typing import Any

from charjax.metrics import Evaluation
from charjax.progress.formatting import duration, four_digits, loss, quantity
from charjax.progress.pace import Pace
from charjax.rendering.line_chart import Curve, line_chart
from charjax.rendering.visible_text import printable

_SECONDS_BETWEEN_UPDATES = 0.5


def in_notebook() -> bool:
    """Returns True in a notebook kernel, whose output can be replaced; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class NotebookReporter:
    """Shows a bar, the latest numbers, the loss curves and the latest sample, updated in place.

    Examples:
        >>> from charjax import NotebookReporter
        >>> shown = []
        >>> reporter = NotebookReporter(shown.append)  # by default it shows HTML with IPython
        >>> reporter.start(total_steps=100, step=0, chars_per_step=3200)
        >>> "step 0 of 100" in shown[-1]
        True
    """

    def __init__(
        self, show: Callable[[str], None] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepares to show HTML with `show`, by default below the running cell."""
        self._show, self._clock = show or _shower(), clock
        self._pace: Pace | None = None
        self._evaluations: list[Evaluation] = []
        self._messages: list[str] = []
        self._sample = ""
        self._shown_at = -math.inf

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: float = 1) -> None:
        """Shows the bar; see `Reporter`."""
        self._pace = Pace(total_steps, step, chars_per_step, epochs, self._clock)
        self._update()

    def update(self, step: int, loss: float) -> None:
        """Redraws at most twice a second."""
        assert self._pace is not None, "update() before start()"
        self._pace.update(step, loss)
        if self._clock() - self._shown_at >= _SECONDS_BETWEEN_UPDATES:
            self._update()

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Adds a point to the curves and replaces the sample."""
        assert self._pace is not None, "evaluation() before start()"
        self._pace.pause()
        self._pace.loss = evaluation.train_loss
        self._evaluations.append(evaluation)
        self._sample = sample_text
        self._update()

    def message(self, text: str) -> None:
        """Adds a line."""
        self._messages.append(text)
        self._update()

    def stop(self) -> None:
        """Shows the final numbers."""
        self._update()

    def _update(self) -> None:
        self._shown_at = self._clock()
        parts = [f"<pre>{html.escape(printable(message))}</pre>" for message in self._messages]
        if self._pace is not None:
            parts += [self._bar(self._pace), f"<div>{html.escape(self._numbers(self._pace))}</div>"]
        measured = [e for e in self._evaluations if math.isfinite(e.val_loss)]
        if measured:
            training = [(e.epoch, e.train_loss) for e in measured if math.isfinite(e.train_loss)]
            curves = [Curve("validation", [(e.epoch, e.val_loss) for e in measured]), Curve("training", training, 1)]
            parts.append(line_chart(curves, across="epoch", up="nats per character"))
        if self._sample:
            parts.append(f'<pre style="white-space: pre-wrap">{html.escape(printable(self._sample))}</pre>')
        self._show("\n".join(parts))

    def _bar(self, pace: Pace) -> str:
        done = pace.step >= pace.total_steps
        clock = f"{duration(pace.elapsed_seconds)} in all" if done else f"{duration(pace.seconds_left)} left"
        return (
            f'<div><progress value="{pace.step}" max="{pace.total_steps}" style="width: 24em"></progress> '
            f"epoch {pace.epoch:.2f} of {pace.epochs:g}, step {pace.step:,} of {pace.total_steps:,}, {clock}</div>"
        )

    def _numbers(self, pace: Pace) -> str:
        if not math.isfinite(pace.loss) and not self._evaluations:
            return "compiling ..."
        numbers = [f"train {loss(pace.loss)}"]
        speed = pace.chars_per_second
        if self._evaluations:
            latest = self._evaluations[-1]
            numbers += [f"val {loss(latest.val_loss)}", f"perplexity {four_digits(latest.perplexity)}"]
            speed = speed if math.isfinite(speed) else latest.chars_per_second or math.nan
        return "   ".join([*numbers, f"{quantity(speed).strip()} characters/s"])


def _shower() -> Callable[[str], None]:
    """Returns a function that shows HTML below the running cell, replacing what it showed before."""
    from IPython.display import HTML, display  # noqa: PLC0415 -- only notebooks have it

    handle: Any = None

    def show(page: str) -> None:
        nonlocal handle
        if handle is None:
            handle = display(HTML(page), display_id=True)
        else:
            handle.update(HTML(page))

    return show
