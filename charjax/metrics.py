"""Next-character cross-entropy in nats, metrics derived from it, and the record of an evaluation."""

import dataclasses
import json
import math
from typing import Any, Self

import jax.numpy as jnp

from charjax.array_types import Array
from charjax.errors import in_short


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns -log p(label) at every position, using `optax.softmax_cross_entropy_with_integer_labels`.

    Args:
        logits: [..., V] float32, unnormalized log-probabilities.
        labels: [...] integer ids in [0, V).

    Returns:
        [...] float32, nats per character; the exponential of their mean is the perplexity.
    """
    import optax  # noqa: PLC0415 -- so that sampling, which does not need it, starts sooner

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))


def perplexity(loss: float) -> float:
    """Returns exp(loss), the equivalent number of equally likely characters; loss is in nats per character."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_char(loss: float) -> float:
    """Returns loss / ln 2, the average number of bits per character; loss is in nats per character."""
    return loss / math.log(2)


# An Evaluation's float fields, in the order of its JSON, and the ones that are derived from other fields.
_MEASURED = (
    "epoch", "train_loss", "val_loss", "perplexity", "bits_per_char", "learning_rate", "grad_norm", "chars_per_second",
    "elapsed_seconds",
)  # fmt: skip
_DERIVED = ("perplexity", "bits_per_char")
# These are None if unknown; logs written by earlier versions do not contain the last two.
_OPTIONAL = ("chars_per_second", "learning_rate", "grad_norm")
_COUNTS = ("skipped_steps", "chars_seen")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The measurements of one evaluation.

    Attributes:
        step: optimizer steps taken.
        epoch: passes over the training text, including fractions of a pass.
        train_loss: nats per character, averaged over the steps since the previous evaluation.
        val_loss: nats per character on the validation text.
        chars_per_second: characters trained on per second. Evaluation time is excluded, and so is compilation time
            unless the call that compiled was the only one. None if not timed.
        elapsed_seconds: wall-clock training time.
        skipped_steps: steps skipped since the previous evaluation because their loss or gradient was not finite.
        learning_rate: the learning rate of the last step; None if unknown, e.g. with a custom optimizer.
        grad_norm: the global gradient norm before clipping, averaged over the steps since the previous evaluation; None
            if unknown, e.g. in logs written by earlier versions.
        chars_seen: characters trained on so far, counting every pass; None if unknown.

    Examples:
        >>> from charjax import Evaluation
        >>> losses = dict(train_loss=1.9, val_loss=2.0)
        >>> measured = Evaluation(step=100, epoch=1.0, **losses, chars_per_second=1e6, elapsed_seconds=3.0)
        >>> round(measured.perplexity, 3), Evaluation.from_json(measured.to_json()) == measured
        (7.389, True)
    """

    step: int
    epoch: float
    train_loss: float
    val_loss: float
    chars_per_second: float | None
    elapsed_seconds: float
    skipped_steps: int = 0
    learning_rate: float | None = None
    grad_norm: float | None = None
    chars_seen: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(val_loss)."""
        return perplexity(self.val_loss)

    @property
    def bits_per_char(self) -> float:
        """val_loss / ln 2."""
        return bits_per_char(self.val_loss)

    def to_dict(self) -> dict[str, float | None]:
        """Returns all measurements by name, including derived ones; numbers that are not finite become None."""
        values: dict[str, float | None] = {name: _finite(getattr(self, name)) for name in _MEASURED}
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {"step": int(self.step), **values, **{name: n if n is None else int(n) for name, n in counts.items()}}

    def to_json(self) -> str:
        """Returns `to_dict()` as a single line of strict JSON, without the newline."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Parses the output of `to_json`; null becomes NaN, or None where allowed, and unknown names are ignored.

        Raises:
            ValueError: the line is not a JSON object with the fields of an Evaluation.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        step, skipped = _whole("step", values.get("step")), _whole("skipped_steps", values.get("skipped_steps", 0))
        seen = values.get("chars_seen")
        values = {"learning_rate": None, "grad_norm": None} | values
        numbers: dict[str, Any] = {name: _number(name, values) for name in _MEASURED if name not in _DERIVED}
        for name in _OPTIONAL:
            if math.isnan(numbers[name]):
                numbers[name] = None
        seen = seen if seen is None else _whole("chars_seen", seen)
        return cls(step=step, skipped_steps=skipped, chars_seen=seen, **numbers)


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
