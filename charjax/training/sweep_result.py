"""Result of a sweep: the losses of its models, with mean and spread over seeds, as a table, JSON and a plot."""

import dataclasses
import itertools
import json
import math
import statistics
from typing import NamedTuple

from charjax.array_types import Params
from charjax.metrics import Evaluation
from charjax.model import CharLSTM
from charjax.rendering.dot_chart import dot_chart
from charjax.training.population import Setting

# Settings that make up a combination, with their column names in the table.
_NAMES = {"learning_rate": "learning rate", "dropout": "dropout", "weight_decay": "weight decay"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepMember:
    """One of the models in a sweep.

    Attributes:
        setting: its learning_rate, dropout, weight_decay and seed.
        evaluations: its evaluations, up to the point of divergence if it diverged.
        diverged: True if the loss or gradient was not finite for three consecutive steps, or the validation loss was
            not finite.
    """

    setting: Setting
    evaluations: tuple[Evaluation, ...]
    diverged: bool

    @property
    def val_loss(self) -> float:
        """Lowest validation loss in nats per character, that of the best parameters; inf if the model diverged."""
        return math.inf if self.diverged else min(evaluation.val_loss for evaluation in self.evaluations)


class Combination(NamedTuple):
    """Models that differ only in their seeds.

    Attributes:
        learning_rate: peak learning rate.
        dropout: dropout rate.
        weight_decay: weight decay.
        losses: `val_loss` of the models that did not diverge.
        diverged: number of models that diverged.
    """

    learning_rate: float
    dropout: float
    weight_decay: float
    losses: tuple[float, ...]
    diverged: int

    @property
    def mean(self) -> float:
        """Mean of the losses; inf if all models diverged."""
        return statistics.fmean(self.losses) if self.losses else math.inf

    @property
    def spread(self) -> float:
        """Sample standard deviation of the losses; NaN for fewer than two."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The return value of `sweep`.

    Attributes:
        model: the best member's model.
        params: its parameters at its best evaluation.
        members: all members, in the order of their settings.
    """

    model: CharLSTM
    params: Params = dataclasses.field(repr=False)
    members: tuple[SweepMember, ...]

    @property
    def best(self) -> SweepMember:
        """The member with the lowest validation loss."""
        return min(self.members, key=lambda member: member.val_loss)

    def combinations(self) -> list[Combination]:
        """Returns all combinations, sorted by the number of diverged models and then by mean loss."""
        found = []
        for (rate, dropout, decay), group in itertools.groupby(self.members, key=lambda member: member.setting[:3]):
            losses = [member.val_loss for member in group]
            finite = tuple(loss for loss in losses if math.isfinite(loss))
            found.append(Combination(rate, dropout, decay, finite, len(losses) - len(finite)))
        return sorted(found, key=lambda combination: (combination.diverged, combination.mean))

    def table(self) -> str:
        """Returns a table of the combinations, best first, with the mean, spread and lowest loss over the seeds."""
        combinations = self.combinations()
        rows = [(*_NAMES.values(), "val loss", "spread", "lowest")]
        for one in combinations:
            settings = (f"{getattr(one, name):g}" for name in _NAMES)
            measured = (one.mean, one.spread, min(one.losses, default=math.inf))
            rows.append((*settings, *(f"{loss:.4f}" if math.isfinite(loss) else "-" for loss in measured)))
        if any(one.diverged for one in combinations):
            counts = (f"{one.diverged} of {one.diverged + len(one.losses)}" for one in combinations)
            rows = [(*row, count) for row, count in zip(rows, ("diverged", *counts), strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Returns the settings and evaluations of all members as JSON."""
        members = [
            {
                **member.setting._asdict(),
                "diverged": member.diverged,
                "evaluations": [json.loads(evaluation.to_json()) for evaluation in member.evaluations],
            }
            for member in self.members
        ]
        return json.dumps({"members": members}, indent=1) + "\n"

    def picture(self) -> str:
        """Returns an SVG plot of the losses against the first setting with multiple values (or the learning rate)."""
        combinations = sorted(self.combinations())
        values = {name: sorted({getattr(one, name) for one in combinations}) for name in _NAMES}
        several = [name for name in _NAMES if len(values[name]) > 1]
        across = (several or list(_NAMES))[0]
        rows: dict[str, dict[str, tuple[float, ...]]] = {}
        for one in combinations:
            label = ", ".join(f"{_NAMES[name]} {getattr(one, name):g}" for name in several if name != across)
            rows.setdefault(label, {})[f"{getattr(one, across):g}"] = one.losses
        columns = [f"{value:g}" for value in values[across]]
        return dot_chart(columns, rows, across=_NAMES[across], up="validation loss, nats per character")
