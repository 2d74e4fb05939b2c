"""Next-character cross-entropy, in nats."""

import dataclasses
import json
import math
from typing import Any, Self

import jax.numpy as jnp

from charjax.array_types import Array
from charjax.errors import in_short


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log p(label) of every position, by `optax.softmax_cross_entropy_with_integer_labels`.

    Args:
        logits: [..., V] float32, unnormalised log-probabilities.
        labels: [...] integer ids in [0, V).

    Returns:
        [...] float32, nats per character; exp of its mean is the perplexity.
    """
    import optax  # noqa: PLC0415 -- only training needs it, and sampling starts sooner without

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))


def perplexity(loss: float) -> float:
    """Exp(loss), with loss in nats per character: how many characters the model hesitates between."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_char(loss: float) -> float:
    """Loss / ln 2, with loss in nats per character: bits that the model encodes a character in."""
    return loss / math.log(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured at one evaluation.

    Attributes:
        step: optimizer steps taken.
        epoch: passes over the training text taken, with a fraction.
        train_loss: nats per character, mean over the steps since the evaluation before.
        val_loss: nats per character of the validation text.
        chars_per_second: characters trained on per second, evaluations left out, and compilation, too, but in an
            interval of one call that had to compile; None if not timed.
        elapsed_seconds: wall-clock time of training.
        skipped_steps: steps since the evaluation before that were skipped, because they were not finite.
    """

    step: int
    epoch: float
    train_loss: float
    val_loss: float
    chars_per_second: float | None
    elapsed_seconds: float
    skipped_steps: int = 0

    @property
    def perplexity(self) -> float:
        """exp(val_loss)."""
        return perplexity(self.val_loss)

    @property
    def bits_per_char(self) -> float:
        """val_loss / ln 2."""
        return bits_per_char(self.val_loss)

    def to_json(self) -> str:
        """One line of strict JSON without its newline; numbers that are not finite become null."""
        values = {
            "step": int(self.step),
            "epoch": _finite(self.epoch),
            "train_loss": _finite(self.train_loss),
            "val_loss": _finite(self.val_loss),
            "perplexity": _finite(self.perplexity),
            "bits_per_char": _finite(self.bits_per_char),
            "chars_per_second": _finite(self.chars_per_second),
            "elapsed_seconds": _finite(self.elapsed_seconds),
            "skipped_steps": int(self.skipped_steps),
        }
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Reads what `to_json` wrote, null as NaN; names that an Evaluation does not have are passed over.

        Raises:
            ValueError: not a JSON object with an Evaluation's numbers.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        step, skipped = _whole("step", values.get("step")), _whole("skipped_steps", values.get("skipped_steps", 0))
        speed = _number("chars_per_second", values)
        return cls(
            step=step,
            epoch=_number("epoch", values),
            train_loss=_number("train_loss", values),
            val_loss=_number("val_loss", values),
            chars_per_second=None if math.isnan(speed) else speed,
            elapsed_seconds=_number("elapsed_seconds", values),
            skipped_steps=skipped,
        )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{name} is {in_short(value)}, not a whole number")
    return value


def _number(name: str, values: dict[str, Any]) -> float:
    if name not in values:
        raise ValueError(f"{name} is missing")
    value = values[name]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {in_short(value)}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is {in_short(value)}, which is too large") from error
