"""Progress on a terminal: a live bar and the latest numbers at the bottom, evaluations and samples above."""

import math
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from charjax.metrics import Evaluation
from charjax.progress.formatting import duration, evaluation_row, four_digits, loss, quantity
from charjax.progress.pace import Pace
from charjax.rendering.visible_text import printable


class TerminalReporter:
    """Shows a live bar with epoch, step and time left, and below it loss, perplexity and speed.

    The time left comes from `Pace`, as rich.progress would count compilation and evaluations as slow steps.

    Examples:
        >>> import sys
        >>> from charjax import TerminalReporter
        >>> from rich.console import Console
        >>> TerminalReporter(Console(file=sys.stdout)).message("starting")
        starting
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._pace: Pace | None = None
        self._live: Live | None = None
        self._latest: Evaluation | None = None
        self._best_val_loss = math.inf

    def start(self, total_steps: int, step: int, chars_per_step: int, epochs: float = 1) -> None:
        """Shows the bar; see `Reporter`."""
        self._pace = Pace(total_steps, step, chars_per_step, epochs, self._clock)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._live.start()

    def update(self, step: int, loss: float) -> None:
        """Records the numbers; the bar redraws itself a few times per second."""
        assert self._pace is not None, "update() before start()"
        self._pace.update(step, loss)

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Writes a line, green if the validation loss is the lowest so far, and below it the sample."""
        assert self._pace is not None, "evaluation() before start()"
        self._pace.pause()
        # Updates carry the previous call's loss, so only an evaluation gives the last frame the final loss.
        self._pace.loss = evaluation.train_loss
        self._latest = evaluation
        best = evaluation.val_loss < self._best_val_loss
        self._best_val_loss = min(self._best_val_loss, evaluation.val_loss)
        train, validation = evaluation_row(self._pace, evaluation)
        self._print(Text.assemble((train, ""), (validation, "bold green" if best else "bold")))
        if sample_text:
            self._print(*self._framed(sample_text))

    def message(self, text: str) -> None:
        """Writes a line above the bar."""
        self._print(Text(self._printable(text)))

    def stop(self) -> None:
        """Leaves the bar as it is and releases the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, *lines: Text) -> None:
        self._console.print(Text("\n").join(lines))

    def _printable(self, text: str) -> str:
        return printable(text, self._console.encoding)

    def _framed(self, sample_text: str) -> list[Text]:
        """Wraps a sample to the width of the terminal, with a vertical rule on its left and empty lines around it."""
        rule = "  | " if self._console.options.ascii_only else "  │ "
        text = Text(self._printable(sample_text), tab_size=4)
        wrapped = text.wrap(self._console, max(1, self._console.width - len(rule)))
        return [Text(), *(Text.assemble((rule, "cyan"), line) for line in wrapped), Text()]

    def _render(self) -> RenderableType:
        assert self._pace is not None
        return Group(self._bar(self._pace), self._numbers(self._pace))

    def _bar(self, pace: Pace) -> RenderableType:
        total = f"{pace.total_steps:,}"
        epoch = f"epoch {pace.epoch:{len(f'{pace.epochs:.2f}')}.2f}/{pace.epochs:g}"
        step = f"step {pace.step:{len(total)},}/{total}"
        done = pace.step >= pace.total_steps
        clock = f"{duration(pace.elapsed_seconds)} in all" if done else f"{duration(pace.seconds_left)} left"
        columns = (Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), Column(no_wrap=True))
        grid = Table.grid(*columns, padding=(0, 2, 0, 0), expand=True)
        bar = ProgressBar(pace.total_steps, pace.step, complete_style="cyan", finished_style="green")
        grid.add_row(epoch, bar, step, clock)
        return grid

    def _numbers(self, pace: Pace) -> RenderableType:
        speed = pace.chars_per_second
        if not math.isfinite(speed) and self._latest is None:
            return Text("compiling ...", style="dim")
        numbers = [("train", loss(pace.loss), "bold")]
        if self._latest is not None:
            numbers.append(("val", loss(self._latest.val_loss), "bold"))
            numbers.append(("perplexity", four_digits(self._latest.perplexity), "bold"))
            # If every call ends with an evaluation, only the evaluation has a speed.
            speed = speed if math.isfinite(speed) else self._latest.chars_per_second or math.nan
        numbers.append(("", quantity(speed).strip() + " characters/s", "cyan"))
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, value, style in numbers:
            text.append(f"{name} " if name else "").append(value, style=style).append("   ")
        return text
