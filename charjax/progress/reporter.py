"""Progress of a training, told to whoever watches: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
from typing import Protocol, TextIO

from rich.console import Console

from charjax.metrics import Evaluation
from charjax.progress.plain import PlainReporter
from charjax.progress.terminal import TerminalReporter


class Reporter(Protocol):
    """What `fit` tells of a training; any class with these methods will do."""

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: int = 1) -> None:
        """Training starts.

        Args:
            total_steps: optimizer steps of the whole training.
            step: steps taken before, by the run that this one goes on from.
            chars_per_step: characters that one step trains on.
            epochs: passes over the training text that total_steps make.
        """
        ...

    def update(self, step: int, loss: float) -> None:
        """Steps up to `step` were dispatched; `loss` is the latest known, in nats/character, NaN at first."""
        ...

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """An evaluation was made, and the model wrote `sample_text`."""
        ...

    def message(self, text: str) -> None:
        """Something else worth a line happened, perhaps before `start`."""
        ...

    def stop(self) -> None:
        """Training ended, well or not; called twice, or without `start`, it does no harm."""
        ...


class NullReporter:
    """Tells nothing."""

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: int = 1) -> None:
        """Does nothing."""

    def update(self, step: int, loss: float) -> None:
        """Does nothing."""

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Does nothing."""

    def message(self, text: str) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Does nothing."""


def make_reporter(file: TextIO | None = None) -> Reporter:
    """Picks by where it writes: a live bar on a terminal that can move its cursor, else plain lines.

    Args:
        file: where to; by default standard output.
    """
    file = file or sys.stdout
    # Not rich's own test, which FORCE_COLOR also answers: a live bar would fill a log file.
    if file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return TerminalReporter(Console(file=file, highlight=False, markup=False, emoji=False))
    return PlainReporter(file)
