"""Frozen dataclasses that configure a run, with bounds in the field types; does not import jax, so --help is fast.

The docstring under a field is also the help text of its command-line option.
"""

# ruff: noqa: UP045 -- for `X | None`, tyro imports typeguard, which takes a quarter of the time of --help.

import dataclasses
import math
import sys
from typing import Annotated, Any, Literal, Optional, TypedDict, TypeVar, get_args, get_origin

from charjax.errors import UserError, in_short

ConfigT = TypeVar("ConfigT", "DataConfig", "ModelConfig", "TrainConfig")
_LARGEST_FLOAT32 = 3.4e38
_ABOVE_0, _BELOW_1 = sys.float_info.min, math.nextafter(1, 0)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of numbers or text lengths that a field accepts, `low` to `high` inclusive; `rule` puts it in words."""

    rule: str
    low: float
    high: float


Count = Annotated[int, Bounds("a whole number of at least 1", 1, 10**12)]
Seed = Annotated[int, Bounds("a whole number from 0 to 4294967295", 0, 2**32 - 1)]
Fraction = Annotated[float, Bounds("between 0 and 1", 0, 1)]
PositiveFraction = Annotated[float, Bounds("above 0 and at most 1", _ABOVE_0, 1)]
BelowOne = Annotated[float, Bounds("at least 0 and below 1", 0, _BELOW_1)]
Positive = Annotated[float, Bounds("above 0 and finite", _ABOVE_0, 1e9)]
NonNegative = Annotated[float, Bounds("at least 0 and finite", 0, 1e9)]
# Every checkpoint stores the configuration, including these strings.
Text = Annotated[str, Bounds("text of at most 100000 characters", 0, 100_000)]
# What to do with characters that are not in the model's vocabulary.
OnUnknown = Literal["error", "skip", "replace"]


class Checked:
    """Base class for dataclasses that check every field against its type when they are constructed.

    Numbers may be NumPy or JAX scalars; they are converted to Python numbers, and integers in float fields to floats.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if getattr(value, "shape", None) == () and hasattr(value, "item"):
                value = value.item()
            _check(field.name, value, field.type)
            value = float(value) if type(value) is int and _is_float(field.type) else value
            object.__setattr__(self, field.name, value)


def _is_float(kind: Any) -> bool:
    """Returns True for float, also if it is optional or has Bounds."""
    return kind is float or (get_origin(kind) is not tuple and any(map(_is_float, get_args(kind))))


def _check(name: str, value: Any, kind: Any) -> None:
    """Checks a value against an annotation: a Literal, a type with Bounds, or a tuple or Optional of either.

    Values with any other annotation pass.

    Raises:
        UserError: the value has the wrong type or is out of bounds.
    """
    parts = get_args(kind)
    if type(None) in parts:
        if value is None:
            return
        kind, parts = parts[0], get_args(parts[0])
    if get_origin(kind) is tuple:
        for one in value:
            _check(name, one, parts[0])
        return
    if get_origin(kind) is Literal:
        valid, rule = isinstance(value, str) and value in parts, f"{', '.join(parts[:-1])} or {parts[-1]}"
    elif parts and isinstance(parts[-1], Bounds):
        base, bounds = parts
        rule = bounds.rule
        typed = isinstance(value, int | float if base is float else base) and not isinstance(value, bool)
        size = len(value) if typed and base is str else value
        valid = typed and bounds.low <= size <= bounds.high
        if typed and bounds.high < size < math.inf and ("finite" in rule or (base is int and "at least" in rule)):
            rule = f"at most {bounds.high if base is int else format(bounds.high, 'g')}"
    else:
        return
    if not valid:
        raise UserError(f"{name} must be {rule}, not {in_short(value)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """How the text is encoded and split."""

    vocab: Literal["auto", "ascii", "chars", "bytes"] = "auto"
    """Vocabulary: ascii (128 characters), chars (all Unicode characters in the text) or bytes (256, for any file).
    auto picks the first of these that can encode the text."""

    train_frac: Annotated[float, Bounds("between 0 and 1, both excluded", _ABOVE_0, _BELOW_1)] = 0.9
    """Fraction of the text to train on, between 0 and 1. The rest, at the end, is used for validation."""

    validation: Optional[Annotated[str, Bounds("a path", 1, 100_000)]] = None
    """Separate text to validate on, in any form that TEXT takes. The model then trains on all of TEXT, ignoring
    --train-frac."""

    separator: Optional[Text] = None
    """String to insert between files, and between the texts of a .jsonl file, e.g. $'\\n\\n' in most shells.
    By default a line break, unless the preceding text already ends with one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """Architecture of the network.

    Examples:
        >>> from charjax import ModelConfig
        >>> ModelConfig(hidden_dim=128, dropout=0.2).hidden_layers
        1
        >>> ModelConfig(dropout=1.0)
        Traceback (most recent call last):
        charjax.errors.UserError: dropout must be at least 0 and below 1, not 1.0
    """

    # Devices use int32 indices, and a layer has 4H gates.
    hidden_dim: Annotated[int, Bounds("a whole number of at least 1", 1, 10**8)] = 512
    """Hidden units per LSTM layer."""

    # Each layer is compiled separately: a thousand layers take minutes, and an untrusted file may ask for millions.
    hidden_layers: Annotated[int, Bounds("a whole number from 1 to 1000", 1, 1000)] = 1
    """Number of LSTM layers."""

    dropout: BelowOne = 0.0
    """Probability of zeroing each layer output during training, at least 0 and below 1.
    Each sequence keeps the same mask for a whole window (variational dropout)."""

    implementation: Optional[Text] = None
    """LSTM implementation; by default chosen according to platform and size.
    CPU: native or custom_vjp. GPU: wavefront, cudnn or mosaic_gpu. TPU: recompute or mosaic_tpu.
    Anywhere, but slower: scan or flax."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format for matrix products. auto means bfloat16 if it is faster on this machine, otherwise float32.
    The cell state, the loss and the optimizer always use float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """How the model is trained.

    Examples:
        >>> from charjax import TrainConfig
        >>> config = TrainConfig(batch_size=16, learning_rate=0.01)
        >>> config.seq_len, config.schedule
        (100, 'cosine')
        >>> TrainConfig(batch_size=0)
        Traceback (most recent call last):
        charjax.errors.UserError: batch_size must be a whole number of at least 1, not 0
    """

    batch_size: Count = 32
    """Sequences per batch, across all devices. The text is cut into this many sequences, processed in parallel."""

    seq_len: Count = 100
    """Characters per window, which is how far back gradients reach (truncated BPTT)."""

    epochs: Positive = 10
    """Passes over the training text; 0.5 covers only its first half."""

    learning_rate: Positive = 5e-3
    """Peak learning rate for AdamW (short form: --lr)."""

    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Learning rate schedule after warm-up: cosine (decays to final_lr_frac), constant,
    or step (multiplied by decay_factor every decay_every epochs)."""

    warmup_frac: Fraction = 0.02
    """Fraction of all steps, from 0 to 1, over which the learning rate warms up from zero."""

    final_lr_frac: Fraction = 0.01
    """Final learning rate of the cosine schedule, as a fraction of learning_rate, from 0 to 1."""

    decay_factor: PositiveFraction = 0.5
    """Factor by which the step schedule multiplies the learning rate, above 0 and at most 1."""

    decay_every: Count = 5
    """Epochs between decays in the step schedule."""

    weight_decay: NonNegative = 0.01
    """Decoupled weight decay for AdamW, applied to weight matrices but not to biases."""

    beta1: BelowOne = 0.8
    """Decay rate per step of AdamW's first moment (the mean gradient), at least 0 and below 1. Short runs converge
    sooner with less than the usual 0.9."""

    beta2: BelowOne = 0.99
    """Decay rate per step of AdamW's second moment (the mean squared gradient), at least 0 and below 1. Character
    models train for few steps, and the usual 0.999 averages over a thousand of them."""

    # Smaller gradients are negligible next to AdamW's epsilon, 1e-8, so nothing would be trained.
    clip_norm: Annotated[float, Bounds("at least 1e-9 and finite", 1e-9, 1e9)] = 1.0
    """Maximum global gradient norm; larger gradients are scaled down to it."""

    seed: Seed = 0
    """Random seed for the initial weights and for dropout."""

    eval_every: Optional[Count] = None
    """Steps between evaluations on the validation text; by default, one evaluation per epoch."""

    patience: Optional[Count] = None
    """Stop after this many consecutive evaluations without a lower validation loss; by default, never."""

    checkpoint_every: Optional[Count] = None
    """Steps between checkpoints; by default, one checkpoint per evaluation."""

    sample_context: Text = ""
    """Prompt for the sample shown at each evaluation."""

    sample_length: Annotated[int, Bounds("a whole number from 0 to 1000000", 0, 10**6)] = 200
    """Length of the sample shown at each evaluation, in characters; 0 for no sample."""

    text_memory_mb: Optional[Count] = None
    """Maximum memory for the text, in megabytes; by default a quarter of the free memory.
    Larger text stays on disk and is read in chunks, with the same result."""

    microbatches: Count = 1
    """Number of parts to split each batch into and process one after another, for batches that do not fit in memory
    (gradient accumulation). The result does not change."""

    # Devices count steps in int32.
    steps_per_call: Optional[Annotated[int, Bounds("a whole number of at least 1", 1, 2**31 - 1)]] = None
    """Maximum number of optimizer steps per device call; by default, about one second's worth."""


class SweepOptions(TypedDict, total=False):
    """The `TrainConfig` fields that `sweep` takes as keyword arguments, besides those that it varies.

    Lets editors complete the names and type checkers catch wrong ones.
    """

    batch_size: int
    seq_len: int
    epochs: float
    schedule: Literal["cosine", "constant", "step"]
    warmup_frac: float
    final_lr_frac: float
    decay_factor: float
    decay_every: int
    beta1: float
    beta2: float
    clip_norm: float
    seed: int
    eval_every: int | None
    text_memory_mb: int | None
    microbatches: int
    steps_per_call: int | None


# TrainConfig fields that only the learning rate depends on, and those that only the optimizer depends on.
SCHEDULE_FIELDS = ("learning_rate", "schedule", "warmup_frac", "final_lr_frac", "decay_factor", "decay_every")
ADAMW_FIELDS = (*SCHEDULE_FIELDS, "weight_decay", "beta1", "beta2", "clip_norm")


class FitOptions(SweepOptions, total=False):
    """The `TrainConfig` fields that `fit` takes as keyword arguments, except learning_rate, which may be a schedule."""

    weight_decay: float
    patience: int | None
    checkpoint_every: int | None
    sample_context: str
    sample_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(Checked):
    """How text is sampled from the model.

    Examples:
        >>> from charjax import SampleConfig
        >>> SampleConfig(temperature=0.7, top_k=40).length
        500
        >>> SampleConfig(top_p=0)
        Traceback (most recent call last):
        charjax.errors.UserError: top_p must be above 0 and at most 1, not 0
    """

    length: Annotated[int, Bounds("a whole number of at least 0", 0, 10**9)] = 500
    """Characters to generate after the prompt. On the command line, 0 generates until interrupted."""

    temperature: NonNegative = 1.0
    """Divisor for the logits; values below 1 give more predictable text, values above 1 more varied text.
    0 always picks the most likely character (argmax)."""

    top_k: Optional[Count] = None
    """Sample only from the k most likely characters."""

    top_p: Optional[PositiveFraction] = None
    """Sample only from the most likely characters whose probabilities add up to this, above 0 and at most 1."""

    min_p: Optional[Fraction] = None
    """Sample only from characters at least this fraction as likely as the most likely one, from 0 to 1."""

    num_samples: Count = 1
    """Number of samples to generate in parallel."""

    seed: Seed = 0
    """Random seed; the same seed gives the same text."""

    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format for the weights. int8 needs a CPU; auto uses the model's format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicConfig(Checked):
    """How the weights adapt to the text while it is scored; see `charjax.dynamic_score`.

    The defaults were best or nearly best for a 2 x 256 model trained on Shakespeare's plays, both on unseen plays and
    on a different kind of text.

    Examples:
        >>> from charjax import DynamicConfig
        >>> DynamicConfig(learning_rate=1e-3).seq_len
        20
    """

    seq_len: Annotated[int, Bounds("a whole number from 1 to 4000", 1, 4000)] = 20
    """Characters scored between weight updates."""

    learning_rate: Annotated[float, Bounds("at least 0 and finite", 0, _LARGEST_FLOAT32)] = 4e-4
    """Roughly how far each weight moves per update; 0 leaves the weights unchanged."""

    decay: Annotated[float, Bounds("at least 0 and finite", 0, _LARGEST_FLOAT32)] = 3e-4
    """Fraction of the distance to its trained value by which each update pulls a weight back; 0 to disable this."""


def from_dict(kind: type[ConfigT], values: Any) -> ConfigT:
    """Builds a configuration from values read from JSON or TOML.

    Raises:
        UserError: a name is unknown, or a value has the wrong type or is out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{kind.__name__} must be an object, not {type(values).__name__}")
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise UserError(f"{kind.__name__} has no field {in_short(unknown[0])}")
    return kind(**values)
