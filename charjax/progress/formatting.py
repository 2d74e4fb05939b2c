"""Formats progress lines in aligned columns that fit into 80 characters."""

import math

from charjax.metrics import Evaluation
from charjax.progress.pace import Pace


def training_row(pace: Pace) -> str:
    """Formats a progress line between evaluations."""
    return (
        f"{_start_of_row(pace, pace.step, pace.epoch)}  train {loss(pace.loss)}  "
        f"{quantity(pace.chars_per_second)} char/s  {duration(pace.seconds_left)} left"
    )


def evaluation_row(pace: Pace, evaluation: Evaluation) -> tuple[str, str]:
    """Formats a line for an evaluation, in two parts: up to the training loss, and the validation results."""
    return (
        f"{_start_of_row(pace, evaluation.step, evaluation.epoch)}  train {loss(evaluation.train_loss)}  ",
        f"val {loss(evaluation.val_loss)}  perplexity {four_digits(evaluation.perplexity)}",
    )


def _start_of_row(pace: Pace, step: int, epoch: float) -> str:
    """Formats elapsed time, epoch and step, with the same width at the first step as at the last."""
    epoch_width, step_width = len(f"{pace.epochs:.2f}"), len(f"{pace.total_steps:,}")
    return f"{duration(pace.elapsed_seconds)}  epoch {epoch:{epoch_width}.2f}  step {step:{step_width},}"


def loss(nats: float) -> str:
    """Formats nats per character, 6 characters wide; a dash if unknown."""
    return f"{nats:6.4f}" if math.isfinite(nats) else f"{'-':>6}"


def four_digits(value: float) -> str:
    """Formats a number of at least 1 with four significant digits, 5 characters wide: 4.290, 42.90, 429.0."""
    decimals = max(0, 4 - len(str(int(value)))) if math.isfinite(value) else 0
    return f"{value:5.{decimals}f}"


def quantity(value: float) -> str:
    """Formats a number with three significant digits and an SI prefix, 5 wide: 9.87k, 123k, 1.23M; a dash if NaN."""
    if not math.isfinite(value):
        return f"{'-':>5}"
    for prefix in ("", "k", "M", "G"):
        # From 999.5 on, rounding to three digits would give 1000.
        if value < 999.5 or prefix == "G":
            break
        value /= 1000
    decimals = 0 if not prefix or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}{prefix}".rjust(5)


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss; dashes if unknown."""
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
