"""Frozen dataclasses that configure a run, with each field's bounds in its type; imports no jax, so the help is quick.

The docstring under a field is also the help text of its command-line option, which keeps its line breaks.
"""

# ruff: noqa: UP045 -- for `X | None` tyro imports typeguard, a quarter of the time that the help takes.

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
    """The numbers that a field accepts, or lengths of text: `low` to `high`, both included. `rule` says it in words."""

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
# What to do about characters of a text that the model's vocabulary lacks.
OnUnknown = Literal["error", "skip", "replace"]


class Checked:
    """Base of dataclasses that check every field against its type when they are built.

    Numbers may be scalars of NumPy or JAX; they are converted to Python numbers.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if getattr(value, "shape", None) == () and hasattr(value, "item"):
                value = value.item()
                object.__setattr__(self, field.name, value)
            _check(field.name, value, field.type)


def _check(name: str, value: Any, kind: Any) -> None:
    """Checks a value against an annotation: a Literal, a type with Bounds, a tuple of these, or one of these or None.

    Values of other types pass.

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
    """Vocabulary: ascii (128 characters), chars (those of the text, any Unicode) or bytes (256, any file).
    auto picks the first of these that the text allows."""

    train_frac: Annotated[float, Bounds("between 0 and 1, both excluded", _ABOVE_0, _BELOW_1)] = 0.9
    """Fraction of the text to train on, between 0 and 1. The rest, at the end of the text, is for validation."""

    validation: Optional[Annotated[str, Bounds("a path", 1, 100_000)]] = None
    """Text to validate on, a path like TEXT. Then all of TEXT is trained on, and --train-frac is not used."""

    separator: Optional[Text] = None
    """String between two files, and between two texts of a .jsonl file, such as $'\\n\\n' in most shells.
    By default a line break, unless the first ends with one."""


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

    # Devices count in int32, and a layer has 4H gates.
    hidden_dim: Annotated[int, Bounds("a whole number of at least 1", 1, 10**8)] = 512
    """Units per LSTM layer."""

    # Each layer is compiled separately: a thousand take minutes, and a file from someone else may ask for millions.
    hidden_layers: Annotated[int, Bounds("a whole number from 1 to 1000", 1, 1000)] = 1
    """Number of LSTM layers."""

    dropout: BelowOne = 0.0
    """Probability of zeroing each output of a layer during training, at least 0 and below 1.
    A sequence has one mask per window (variational dropout)."""

    implementation: Optional[Text] = None
    """How the LSTM is computed, by default chosen by platform and size.
    CPU: native or custom_vjp. GPU: wavefront, cudnn or mosaic_gpu. TPU: recompute or mosaic_tpu.
    Anywhere, but slower: scan or flax."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products. auto is bfloat16 if it is faster on this machine, otherwise float32.
    Cell state, loss and optimizer are always float32."""


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
    """Sequences per batch, over all devices together. The text is cut into this many, which are trained in parallel."""

    seq_len: Count = 100
    """Characters per window, which is how far back gradients reach (truncated BPTT)."""

    epochs: Positive = 10
    """Passes over the training text; 0.5 is its first half."""

    learning_rate: Positive = 5e-3
    """Peak learning rate of AdamW (short: --lr)."""

    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Learning rate after warm-up: cosine (down to final_lr_frac), constant,
    or step (times decay_factor every decay_every epochs)."""

    warmup_frac: Fraction = 0.02
    """Fraction of all steps over which the learning rate rises from zero, 0 to 1."""

    final_lr_frac: Fraction = 0.01
    """Final learning rate of the cosine schedule, as a fraction of learning_rate, 0 to 1."""

    decay_factor: PositiveFraction = 0.5
    """Factor by which the step schedule multiplies the learning rate, above 0 and at most 1."""

    decay_every: Count = 5
    """Epochs between two decays of the step schedule."""

    weight_decay: NonNegative = 0.01
    """Decoupled weight decay of AdamW. It applies to weight matrices, not to biases."""

    beta1: BelowOne = 0.8
    """Decay per step of AdamW's average of gradients, at least 0 and below 1. Short runs learn sooner with less than
    the usual 0.9."""

    beta2: BelowOne = 0.99
    """Decay per step of AdamW's average of squared gradients, at least 0 and below 1. A character model trains for few
    steps, and the usual 0.999 averages over a thousand of them."""

    # Smaller gradients vanish beside the epsilon of AdamW, 1e-8: nothing would be trained.
    clip_norm: Annotated[float, Bounds("at least 1e-9 and finite", 1e-9, 1e9)] = 1.0
    """Maximum global norm of the gradient; a larger gradient is scaled down to it."""

    seed: Seed = 0
    """Seed of the initial weights and of dropout."""

    eval_every: Optional[Count] = None
    """Steps between evaluations on the validation text; by default once per epoch."""

    patience: Optional[Count] = None
    """Stop after this many evaluations in a row without a lower validation loss; by default never."""

    checkpoint_every: Optional[Count] = None
    """Steps between checkpoints; by default one at each evaluation."""

    sample_context: Text = ""
    """Prompt of the sample that is shown at each evaluation."""

    sample_length: Annotated[int, Bounds("a whole number from 0 to 1000000", 0, 10**6)] = 200
    """Characters in the sample that is shown at each evaluation; 0 for no sample."""

    text_memory_mb: Optional[Count] = None
    """Memory for the text in megabytes; by default a quarter of the free memory.
    A larger text stays on disk and is read in chunks, with the same result."""

    microbatches: Count = 1
    """Number of parts to split a batch into, computed one after another, if it does not fit in memory
    (gradient accumulation). The result does not change."""

    # Devices count steps in int32.
    steps_per_call: Optional[Annotated[int, Bounds("a whole number of at least 1", 1, 2**31 - 1)]] = None
    """Maximum number of optimizer steps per call to the device; by default as many as take about a second."""


class SweepOptions(TypedDict, total=False):
    """The fields of `TrainConfig` that `sweep` takes by name; the others it takes with several values each.

    Editors complete them, and type checkers find a wrong name.
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


class FitOptions(SweepOptions, total=False):
    """The fields of `TrainConfig` that `fit` takes by name; it takes learning_rate apart, which may be a schedule."""

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
    """Divides the logits: below 1 is more predictable, above 1 more varied.
    0 always picks the most likely character (argmax)."""

    top_k: Optional[Count] = None
    """Sample only from the k most likely characters."""

    top_p: Optional[PositiveFraction] = None
    """Sample only from the most likely characters whose probabilities add up to this, above 0 and at most 1."""

    min_p: Optional[Fraction] = None
    """Sample only from characters at least this fraction as probable as the most likely one, 0 to 1."""

    num_samples: Count = 1
    """Number of texts to generate in parallel."""

    seed: Seed = 0
    """Random seed; the same seed gives the same text."""

    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of the weights. int8 needs a CPU; auto is the model's format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicConfig(Checked):
    """How the weights adapt to a text while it is scored; see `charjax.dynamic_score`.

    The defaults were best or nearly best for a 2 x 256 model trained on Shakespeare's plays, both on plays that it had
    not seen and on a different kind of text.

    Examples:
        >>> from charjax import DynamicConfig
        >>> DynamicConfig(learning_rate=1e-3).seq_len
        20
    """

    seq_len: Annotated[int, Bounds("a whole number from 1 to 4000", 1, 4000)] = 20
    """Characters scored between two updates of the weights."""

    learning_rate: Annotated[float, Bounds("at least 0 and finite", 0, _LARGEST_FLOAT32)] = 4e-4
    """About how far a weight moves per update; 0 leaves the weights unchanged."""

    decay: Annotated[float, Bounds("at least 0 and finite", 0, _LARGEST_FLOAT32)] = 3e-4
    """Fraction of the way back to its trained value that each weight is pulled per update; 0 for none."""


def from_dict(kind: type[ConfigT], values: Any) -> ConfigT:
    """Builds a configuration from values that were read from JSON or TOML.

    Raises:
        UserError: a name is unknown, or a value has the wrong type or is out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{kind.__name__} must be an object, not {type(values).__name__}")
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise UserError(f"{kind.__name__} has no field {in_short(unknown[0])}")
    return kind(**values)
