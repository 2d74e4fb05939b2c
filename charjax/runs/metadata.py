"""The configuration and progress of a run, and their conversion to and from JSON."""

import dataclasses
from types import UnionType
from typing import Any, Self

from charjax._version import __version__
from charjax.config import ADAMW_FIELDS, SCHEDULE_FIELDS, DataConfig, ModelConfig, TrainConfig, from_dict
from charjax.data.vocab import Vocab
from charjax.errors import UserError, in_short

# Version of the files in a run folder. A release that writes what its predecessor would refuse or misread, e.g. a new
# field, raises it.
FORMAT = 1

# The values used before these settings became options.
_FORMER_DEFAULTS = {"beta1": 0.9, "beta2": 0.99}

# Larger than any count or duration in a training run, but small enough to compute with.
_LARGEST = 1e15


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """Identifies the text that a model was trained on.

    Attributes:
        name: name of the file, or of the first file if there are more.
        paths: absolute paths of its files, folders and patterns; empty if the text did not come from files.
        sha256: hex digest of the bytes of the text.
        validation_sha256: hex digest of separate validation text; empty if there is none.
        train_characters: length of the training split.
        validation_characters: length of the validation split.
    """

    name: str = "an unknown text"
    paths: tuple[str, ...] = ()
    sha256: str = ""
    validation_sha256: str = ""
    train_characters: int = 0
    validation_characters: int = 0

    @property
    def digests(self) -> list[str]:
        """The digests of the text and, if it is separate, the validation text."""
        return [self.sha256, self.validation_sha256] if self.validation_sha256 else [self.sha256]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitInfo:
    """Describes what a run was trained with besides its options.

    Attributes:
        init_from: absolute path of the model that training started from; empty if the weights were random.
        init_step: step that this model was saved at.
        replaces: "optimizer" or "learning_rate", the argument of `fit` that was used instead of the options; empty if
            there was none. None if unknown, as for older runs.
    """

    init_from: str = ""
    init_step: int = 0
    replaces: str | None = None

    @property
    def replaced(self) -> tuple[str, ...]:
        """The options that were not used."""
        return {"optimizer": ADAMW_FIELDS, "learning_rate": SCHEDULE_FIELDS}.get(self.replaces or "", ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Everything needed to rebuild a run's model, vocabulary and optimizer.

    A model that was not trained by charjax needs only `model` and `vocab`.
    """

    model: ModelConfig
    vocab: Vocab
    charjax_version: str = ""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    corpus: CorpusInfo = dataclasses.field(default_factory=CorpusInfo)
    fit: FitInfo = dataclasses.field(default_factory=FitInfo)

    @property
    def was_trained(self) -> bool:
        """False for a model without a record of its training: one that was imported or written by `save_model`."""
        return self.corpus.train_characters > 0

    def options(self) -> dict[str, Any]:
        """Returns all options by name; those that were not used are "replaced"."""
        options: dict[str, Any] = {}
        for config in (self.data, self.model, self.train):
            options |= dataclasses.asdict(config)
        if self.fit.init_from:
            options["init_from"] = f"{self.fit.init_from} (step {self.fit.init_step:,})"
        return options | dict.fromkeys(self.fit.replaced, f"replaced by fit({self.fit.replaces}=...)")

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict that `from_dict` accepts."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Builds a RunInfo from JSON values.

        Raises:
            UserError: a later version of charjax wrote them, or a part is missing, unknown, of the wrong type or out of
                range.
        """
        values = _check_names(cls, _without_format(values))
        version = values.get("charjax_version", "")
        if not isinstance(version, str):
            raise UserError(f"charjax_version must be a string, not {in_short(version)}")
        return cls(
            charjax_version=version,
            data=from_dict(DataConfig, values.get("data", {})),
            model=from_dict(ModelConfig, values["model"]),
            train=from_dict(TrainConfig, _with_former_defaults(values.get("train", {}))),
            corpus=_typed(CorpusInfo, _with_paths(values.get("corpus", {}))),
            fit=_typed(FitInfo, values.get("fit", {})),
            vocab=Vocab.from_dict(values["vocab"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: everything besides the TrainState that the training loop needs to continue.

    Attributes:
        step: optimizer steps taken.
        epoch: passes over the training text, fractional.
        val_loss: validation loss in nats per character, if this step was evaluated.
        best_step: step with the lowest validation loss so far.
        best_val_loss: that loss.
        elapsed_seconds: wall-clock time spent training.
        metrics_bytes: length of metrics.jsonl.
        samples_bytes: length of samples.txt.
        train_nats: sum of -log p over the characters trained on since the last evaluation.
        train_count: number of those characters.
        train_skipped: steps skipped since the last evaluation because their loss or gradient was not finite.
        train_steps: steps taken since the last evaluation, excluding skipped ones.
        train_grad_norm: sum of the gradient norms in those steps.
        rollbacks: number of rollbacks to an earlier checkpoint; each halved the learning rate.
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
    train_steps: int = 0
    train_grad_norm: float = 0.0
    rollbacks: int = 0

    @property
    def is_best(self) -> bool:
        """True if this step has the lowest validation loss so far."""
        return self.best_step == self.step

    @property
    def model_step(self) -> int:
        """The step that the saved model comes from: the best step or, before the first evaluation, the latest."""
        return self.step if self.best_step is None else self.best_step

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-serializable dict that `from_dict` accepts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Builds a Progress from JSON values.

        Raises:
            UserError: a number is missing, unknown, of the wrong type, negative or not finite.
        """
        return _typed(cls, values)


def _without_format(values: Any) -> Any:
    """Removes the format version, which the oldest files lack; raises UserError if it is later than `FORMAT`."""
    if not isinstance(values, dict):
        return values
    version = values.get("format", FORMAT)
    if type(version) is not int or version < 1:
        raise UserError(f"the format version must be a whole number of at least 1, not {in_short(version)}")
    if version > FORMAT:
        raise UserError(
            f"its format version is {in_short(version)}, but charjax {__version__} only knows {FORMAT}; upgrade charjax"
        )
    return {name: value for name, value in values.items() if name != "format"}


def _with_former_defaults(train: Any) -> Any:
    """Adds options that did not exist when an older run was trained."""
    return _FORMER_DEFAULTS | train if isinstance(train, dict) and train else train


def _with_paths(corpus: Any) -> Any:
    """Converts the single path stored by an older run to a list."""
    if not isinstance(corpus, dict) or "path" not in corpus:
        return corpus
    path = corpus["path"]
    return {"paths": [path] if path else [], **{name: corpus[name] for name in corpus if name != "path"}}


def _check_names(kind: Any, values: Any) -> dict[str, Any]:
    """Checks for unknown and missing fields; those with defaults may be missing."""
    fields = dataclasses.fields(kind)
    names = {field.name for field in fields}
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= names:
        found = in_short(list(values)) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{kind.__name__} must have the fields {', '.join(sorted(names))}, not {found}")
    return values


def _typed(kind: Any, values: Any) -> Any:
    """Builds a flat dataclass from JSON values whose types match its fields exactly.

    Integers are accepted for floats. Every number is a count or an amount, so it must not be negative.
    """
    values = _check_names(kind, values)
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        value = values[field.name]
        if field.type == tuple[str, ...] and isinstance(value, list | tuple) and {*map(type, value)} <= {str}:
            values = {**values, field.name: tuple(value)}
            continue
        integer_for_float = type(value) is int and field.type in (float, float | None)
        is_plain = isinstance(field.type, type | UnionType) and isinstance(value, field.type)
        if isinstance(value, bool) or not (integer_for_float or is_plain):
            wanted = getattr(field.type, "__name__", field.type)
            raise UserError(f"{kind.__name__}.{field.name} must be {wanted}, not {in_short(value)}")
        if isinstance(value, int | float) and not 0 <= value < _LARGEST:
            rule = f"a number from 0 to {_LARGEST:g}"
            raise UserError(f"{kind.__name__}.{field.name} must be {rule}, not {in_short(value)}")
    return kind(**values)
