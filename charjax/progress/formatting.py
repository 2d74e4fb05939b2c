"""The lines that progress is told in: aligned columns that fit 80 characters."""

import math

from charjax.metrics import Evaluation
from charjax.progress.pace import Pace


def start_of_row(pace: Pace, step: int, epoch: float) -> str:
    """Elapsed time, epoch and step, as wide at the first step as at the last."""
    epoch_width, step_width = len(f"{pace.epochs:.2f}"), len(f"{pace.total_steps:,}")
    return f"{duration(pace.elapsed_seconds)}  epoch {epoch:{epoch_width}.2f}  step {step:{step_width},}"


def training_row(pace: Pace) -> str:
    """A line between two evaluations."""
    return (
        f"{start_of_row(pace, pace.step, pace.epoch)}  train {loss(pace.loss)}  "
        f"{quantity(pace.chars_per_second)} char/s  {duration(pace.seconds_left)} left"
    )


def evaluation_row(pace: Pace, evaluation: Evaluation) -> tuple[str, str]:
    """A line for an evaluation, in two parts: up to the training loss, and what validation measured."""
    return (
        f"{start_of_row(pace, evaluation.step, evaluation.epoch)}  train {loss(evaluation.train_loss)}  ",
        f"val {loss(evaluation.val_loss)}  perplexity {four_digits(evaluation.perplexity)}",
    )


def loss(nats: float) -> str:
    """Nats per character, 6 wide; a dash while it is not known."""
    return f"{nats:6.4f}" if math.isfinite(nats) else f"{'-':>6}"


def four_digits(value: float) -> str:
    """Four digits that count of a number of at least 1, 5 wide: 4.290, 42.90, 429.0."""
    decimals = max(0, 4 - len(str(int(value)))) if math.isfinite(value) else 0
    return f"{value:5.{decimals}f}"


def quantity(value: float) -> str:
    """Three digits that count, 5 wide with SI prefix: 9.87k, 123k, 1.23M; a dash while it is not known."""
    if not math.isfinite(value):
        return f"{'-':>5}"
    for prefix in ("", "k", "M", "G"):
        # From 999.5 on, three digits would round to 1000.
        if value < 999.5 or prefix == "G":
            break
        value /= 1000
    decimals = 0 if not prefix or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}{prefix}".rjust(5)


def duration(seconds: float) -> str:
    """h:mm:ss; dashes while it is not known."""
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
