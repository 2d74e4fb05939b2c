"""Progress as plain lines, for files, pipes and notebooks."""

import math
import time
from collections.abc import Callable
from typing import TextIO

from charjax.metrics import Evaluation
from charjax.progress.formatting import evaluation_row, training_row
from charjax.progress.pace import Pace
from charjax.rendering.visible_text import printable

_LINE_SECONDS = 10.0
_FIRST_LINE_SECONDS = 2.0
_INDENT = "    "


class PlainReporter:
    """Writes and flushes a line per evaluation and, between evaluations, at most one every ten seconds.

    A closed pipe raises BrokenPipeError.

    Examples:
        >>> import io
        >>> from charjax import PlainReporter
        >>> file = io.StringIO()
        >>> PlainReporter(file).message("starting")  # fit(model, corpus, reporter=PlainReporter(file)) calls it
        >>> print(file.getvalue(), end="")
        starting
    """

    def __init__(self, file: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._pace: Pace | None = None
        self._next_line_at = 0.0

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: float = 1) -> None:
        """Starts the clock; see `Reporter`."""
        self._pace = Pace(total_steps, step, chars_per_step, epochs, self._clock)
        self._next_line_at = self._clock() + _FIRST_LINE_SECONDS

    def update(self, step: int, loss: float) -> None:
        """Writes a line if the last one is at least ten seconds old; the first comes sooner, to show the speed."""
        assert self._pace is not None, "update() before start()"
        self._pace.update(step, loss)
        if self._clock() >= self._next_line_at and math.isfinite(self._pace.chars_per_second):
            self._write(training_row(self._pace))

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Writes a line and, indented, the sample."""
        assert self._pace is not None, "evaluation() before start()"
        self._pace.pause()
        self._write("".join(evaluation_row(self._pace, evaluation)))
        if sample_text:
            lines = printable(sample_text).split("\n")
            self._write("\n".join([(_INDENT + line).rstrip() for line in ["", *lines, ""]]))

    def message(self, text: str) -> None:
        """Writes a line."""
        self._write(text)

    def stop(self) -> None:
        """Does nothing, as every line has been flushed."""

    def _write(self, text: str) -> None:
        print(printable(text, self._file.encoding or "utf-8"), file=self._file, flush=True)
        self._next_line_at = self._clock() + _LINE_SECONDS
