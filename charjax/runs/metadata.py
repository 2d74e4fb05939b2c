"""What a run is made of and how far it has come, as JSON can hold it."""

import dataclasses
from typing import Any, Self

from charjax.config import DataConfig, ModelConfig, TrainConfig, from_dict
from charjax.data.vocab import Vocab
from charjax.errors import UserError, in_short

# Beyond any count or time of a training, and small enough for whatever is computed from one.
_LARGEST = 1e15


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """By what a run knows its text again.

    Attributes:
        name: name of the file.
        path: absolute path of the file, empty for a text that came from none.
        sha256: hex digest of the text's bytes.
        train_characters: length of the training split.
        validation_characters: length of the validation split.
    """

    name: str
    path: str
    sha256: str
    train_characters: int
    validation_characters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run is made of: enough to build its model, vocabulary and optimizer again."""

    charjax_version: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    corpus: CorpusInfo
    vocab: Vocab

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, as JSON can hold it."""
        return {
            "charjax_version": self.charjax_version,
            "data": dataclasses.asdict(self.data),
            "model": dataclasses.asdict(self.model),
            "train": dataclasses.asdict(self.train),
            "corpus": dataclasses.asdict(self.corpus),
            "vocab": self.vocab.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Builds a RunInfo from JSON values.

        Raises:
            UserError: a part that is missing, unknown, of the wrong type or out of range.
        """
        values = _check_names(cls, values)
        version = values["charjax_version"]
        if not isinstance(version, str):
            raise UserError(f"charjax_version must be a string, not {in_short(version)}")
        return cls(
            charjax_version=version,
            data=from_dict(DataConfig, values["data"]),
            model=from_dict(ModelConfig, values["model"]),
            train=from_dict(TrainConfig, values["train"]),
            corpus=_typed(CorpusInfo, values["corpus"]),
            vocab=Vocab.from_dict(values["vocab"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come: what the host's loop goes on from, beside the TrainState.

    Attributes:
        step: optimizer steps taken.
        epoch: passes over the training text taken, with a fraction.
        val_loss: validation loss in nats per character, where this very step was evaluated.
        best_step: the step with the lowest validation loss so far.
        best_val_loss: that loss.
        elapsed_seconds: wall-clock time of training.
        metrics_bytes: length of metrics.jsonl.
        samples_bytes: length of samples.txt.
        train_nats: sum of -log p over the characters trained on since the last evaluation.
        train_count: number of those characters.
        train_skipped: steps skipped since then, because their loss or gradient was not finite.
        rollbacks: how often the run went back to an earlier checkpoint; each time its learning rate was halved.
    """

    step: int
    epoch: float = 0.0
    val_loss: float | None = None
    best_step: int | None = None
    best_val_loss: float | None = None
    elapsed_seconds: float = 0.0
    metrics_bytes: int = 0
    samples_bytes: int = 0
    train_nats: float = 0.0
    train_count: int = 0
    train_skipped: int = 0
    rollbacks: int = 0

    @property
    def is_best(self) -> bool:
        """Whether this very step has the lowest validation loss so far."""
        return self.best_step == self.step

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Builds a Progress from JSON values.

        Raises:
            UserError: a number that is missing, unknown, of the wrong type, negative where it counts, or not finite.
        """
        return _typed(cls, values)


def _check_names(kind: Any, values: Any) -> dict[str, Any]:
    """Checks that all fields are there but those with defaults, which an earlier version may not have had."""
    names = {field.name for field in dataclasses.fields(kind)}
    needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= names:
        found = in_short(list(values)) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{kind.__name__} must hold {', '.join(sorted(names))}, not {found}")
    return values


def _typed(kind: Any, values: Any) -> Any:
    """Builds a flat dataclass from JSON values of exactly its fields' types; whole numbers pass for floats.

    Its numbers are all counts or amounts.
    """
    values = _check_names(kind, values)
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        value = values[field.name]
        whole_float = type(value) is int and field.type in (float, float | None)
        if isinstance(value, bool) or not (whole_float or isinstance(value, field.type)):  # type: ignore[arg-type]
            wanted = getattr(field.type, "__name__", field.type)
            raise UserError(f"{kind.__name__}.{field.name} must be {wanted}, not {in_short(value)}")
        if isinstance(value, int | float) and not 0 <= value < _LARGEST:
            rule = f"a number from 0 to {_LARGEST:g}"
            raise UserError(f"{kind.__name__}.{field.name} must be {rule}, not {in_short(value)}")
    return kind(**values)
