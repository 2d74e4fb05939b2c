"""The interface through which `fit` reports progress, and the choice between a live bar and plain lines."""

import os
import sys
from typing import Protocol, TextIO

from rich.console import Console

from charjax.metrics import Evaluation
from charjax.progress.notebook import NotebookReporter, in_notebook
from charjax.progress.plain import PlainReporter
from charjax.progress.terminal import TerminalReporter


class Reporter(Protocol):
    """Receives the progress of `fit`; any class with these methods will do.

    Examples:
        >>> from charjax import History, Reporter
        >>> class Lowest(History):  # History keeps everything, and does nothing else
        ...     def stop(self) -> None:
        ...         print(min((e.val_loss for e in self.evaluations), default=None))
        >>> reporter: Reporter = Lowest()
        >>> reporter.stop()
        None
    """

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: float = 1) -> None:
        """Called when training starts, and again after a rollback.

        Args:
            total_steps: total number of optimizer steps in the run.
            step: steps already taken; above 0 after resuming, and usually after a rollback.
            chars_per_step: characters that one step trains on.
            epochs: passes over the training text in total_steps.
        """

    def update(self, step: int, loss: float) -> None:
        """Called once the steps up to `step` are dispatched; `loss` is the latest known (nats/char), NaN at first."""

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Called after each evaluation, with a sample from the model."""

    def message(self, text: str) -> None:
        """Called for anything else worth a line; may be called before `start`."""

    def stop(self) -> None:
        """Called when training ends, successfully or not; may be called twice, or without `start`."""


class NullReporter:
    """Shows nothing."""

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: float = 1) -> None:
        """Does nothing."""

    def update(self, step: int, loss: float) -> None:
        """Does nothing."""

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Does nothing."""

    def message(self, text: str) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Does nothing."""


class Both:
    """Passes everything on to two reporters."""

    def __init__(self, first: Reporter, second: Reporter) -> None:
        """Initializes the pair, which is told everything in this order."""
        self._reporters = first, second

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: float = 1) -> None:
        """Starts both."""
        for reporter in self._reporters:
            reporter.start(total_steps, step, chars_per_step, epochs)

    def update(self, step: int, loss: float) -> None:
        """Updates both."""
        for reporter in self._reporters:
            reporter.update(step, loss)

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Passes the evaluation to both."""
        for reporter in self._reporters:
            reporter.evaluation(evaluation, sample_text)

    def message(self, text: str) -> None:
        """Passes the message to both."""
        for reporter in self._reporters:
            reporter.message(text)

    def stop(self) -> None:
        """Stops both."""
        for reporter in self._reporters:
            reporter.stop()


def make_reporter(file: TextIO | None = None) -> Reporter:
    """Returns a live bar in a notebook or a terminal that can move its cursor, otherwise a plain-line reporter.

    Args:
        file: where to write; by default standard output. Without standard output, as under pythonw, nothing is shown.
    """
    if in_notebook():
        return NotebookReporter()
    file = file or sys.stdout
    if file is None:
        return NullReporter()
    # Rich's own test is not used, because FORCE_COLOR overrides it, and a live bar would then fill a log file.
    if file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return TerminalReporter(Console(file=file, highlight=False, markup=False, emoji=False))
    return PlainReporter(file)
