"""What a run is made of, as frozen dataclasses; imports no jax, so that the command line starts at once.

The docstring under each field is also the help text of its command-line flag.
"""

# ruff: noqa: UP045 -- for `X | None` tyro imports typeguard, a quarter of what it takes to show the help.

import dataclasses
from typing import Any, Literal, Optional, TypeVar, get_args

from charjax.errors import UserError, in_short

Dtype = Literal["auto", "float32", "bfloat16"]
WeightsDtype = Literal["auto", "float32", "bfloat16", "int8"]
Schedule = Literal["cosine", "constant", "step"]
VocabKind = Literal["auto", "ascii", "chars", "bytes"]
ConfigT = TypeVar("ConfigT", "DataConfig", "ModelConfig", "TrainConfig")
_LARGEST_FLOAT32 = 3.4e38
_LARGEST_COUNT = 10**12
_MOST_STEPS_PER_CALL = 2**31 - 1  # devices count in int32
# Characters of a context that is kept with the configuration, which each checkpoint holds.
_LONGEST_CONTEXT = 100_000


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise UserError(f"{name} must be {rule}, not {in_short(value)}")


def _require_counts(config: Any, *names: str) -> None:
    """Checks that the named fields are whole numbers of at least 1 (or None where the field allows it)."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= 1, name, value, "a whole number of at least 1")
        _require(value <= _LARGEST_COUNT, name, value, f"at most {_LARGEST_COUNT}")


def _require_number(config: Any, name: str, rule: str, low: float, high: float, *, open_ends: str = "") -> None:
    """Checks that a field is a number in [low, high]; `open_ends` holds "low" and/or "high" to leave an end out."""
    value = getattr(config, name)
    number = isinstance(value, int if "whole" in rule else int | float) and not isinstance(value, bool)
    above = number and (value > low if "low" in open_ends else value >= low)
    below = number and (value < high if "high" in open_ends else value <= high)
    _require(bool(above and below), name, value, rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a text becomes characters and splits."""

    vocab: VocabKind = "auto"
    """Alphabet: ascii (128 characters), chars (the text's own, any Unicode), bytes (256, any file),
    or auto (ascii where the text allows it, else chars, else bytes)."""

    train_frac: float = 0.9
    """Fraction of the text to train on, between 0 and 1; the rest, at its end, is for validation."""

    def __post_init__(self) -> None:
        _require(
            self.vocab in ("auto", "ascii", "chars", "bytes"),
            "vocab",
            self.vocab,
            "auto, ascii, chars or bytes",
        )
        _require_number(self, "train_frac", "between 0 and 1, both left out", 0, 1, open_ends="low high")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the network."""

    hidden_dim: int = 512
    """Units per LSTM layer."""

    hidden_layers: int = 2
    """Number of LSTM layers."""

    dropout: float = 0.0
    """Probability of zeroing an output of each layer while training, 0 to below 1."""

    implementation: Optional[str] = None
    """How the LSTM is computed: flax, scan, custom_vjp, native (for processors), recompute (for TPUs), wavefront (for
    GPUs), cudnn, mosaic_gpu or mosaic_tpu; by default chosen by platform and size."""

    dtype: Dtype = "auto"
    """Number format of the matrix products: float32, bfloat16, or auto (bfloat16 where this machine multiplies it
    faster, else float32). Cell state, loss and optimizer stay float32."""

    def __post_init__(self) -> None:
        name = self.implementation
        _require(name is None or isinstance(name, str), "implementation", name, "the name of an implementation")
        _require_counts(self, "hidden_dim")
        # Each layer is compiled by itself: a thousand take minutes, and a file from someone else may name millions.
        _require_number(self, "hidden_layers", "a whole number from 1 to 1000", 1, 1000)
        _require_number(self, "dropout", "at least 0 and below 1", 0, 1, open_ends="high")
        _require(self.dtype in get_args(Dtype), "dtype", self.dtype, "auto, float32 or bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    batch_size: int = 64
    """Streams of text trained on side by side, over all devices together."""

    seq_len: int = 100
    """Characters per window: how far back gradients reach (truncated BPTT)."""

    epochs: int = 10
    """Passes over the training text."""

    learning_rate: float = 3e-3
    """Highest learning rate of AdamW."""

    schedule: Schedule = "cosine"
    """Learning rate after warm-up: cosine (down to final_lr_frac), constant, or step (decay_factor every
    decay_every epochs)."""

    warmup_frac: float = 0.05
    """Fraction of all steps over which the learning rate rises from zero, 0 to 1."""

    final_lr_frac: float = 0.01
    """Where the cosine ends, as a fraction of learning_rate, 0 to 1."""

    decay_factor: float = 0.5
    """What the step schedule multiplies the learning rate by, above 0 and at most 1."""

    decay_every: int = 5
    """Epochs between two decays of the step schedule."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, on weight matrices alone (biases are left out)."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient; longer gradients are scaled down to it."""

    seed: int = 0
    """Seed of the initial weights and of dropout."""

    eval_every: Optional[int] = None
    """Steps between evaluations on the validation text; by default one epoch."""

    checkpoint_every: Optional[int] = None
    """Steps between checkpoints; by default one at each evaluation."""

    sample_context: str = ""
    """Text that the sample shown at each evaluation goes on from."""

    sample_length: int = 200
    """Characters in the sample shown at each evaluation; 0 for none."""

    text_memory_mb: Optional[int] = None
    """Megabytes of memory for the text: a larger one stays in its file and is read part by part, with the same result;
    by default a quarter of what is free."""

    microbatches: int = 1
    """Parts that a batch is computed in, one after the other, for batches that do not fit in memory (gradient
    accumulation); the result is the same."""

    steps_per_call: Optional[int] = None
    """Most optimizer steps per dispatch to the device; by default fitted to about a second."""

    def __post_init__(self) -> None:
        _require_counts(self, "batch_size", "seq_len", "epochs", "decay_every", "microbatches")
        for name in ("eval_every", "checkpoint_every", "text_memory_mb", "steps_per_call"):
            if getattr(self, name) is not None:
                _require_counts(self, name)
        steps = self.steps_per_call
        _require(
            steps is None or steps <= _MOST_STEPS_PER_CALL, "steps_per_call", steps, f"at most {_MOST_STEPS_PER_CALL}"
        )
        _require_number(self, "learning_rate", "above 0 and finite", 0, 1e9, open_ends="low")
        _require(
            self.schedule in ("cosine", "constant", "step"),
            "schedule",
            self.schedule,
            "cosine, constant or step",
        )
        _require_number(self, "warmup_frac", "between 0 and 1", 0, 1)
        _require_number(self, "final_lr_frac", "between 0 and 1", 0, 1)
        _require_number(self, "decay_factor", "above 0 and at most 1", 0, 1, open_ends="low")
        _require_number(self, "weight_decay", "at least 0 and finite", 0, 1e9)
        _require_number(self, "clip_norm", "above 0 and finite", 0, 1e9, open_ends="low")
        _require_number(self, "seed", "a whole number from 0 to 4294967295", 0, 2**32 - 1)
        context = self.sample_context
        is_text = isinstance(context, str) and len(context) <= _LONGEST_CONTEXT
        _require(is_text, "sample_context", context, f"text of at most {_LONGEST_CONTEXT} characters")
        _require_number(self, "sample_length", "a whole number from 0 to 1000000", 0, 10**6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How text is drawn from a model."""

    length: int = 500
    """Characters to generate after the context; on the command line, 0 goes on until interrupted."""

    temperature: float = 1.0
    """Divides the logits: below 1 is safer, above 1 wilder, 0 takes the likeliest character every time (argmax)."""

    top_k: Optional[int] = None
    """Draw among this many likeliest characters alone."""

    top_p: Optional[float] = None
    """Draw among the fewest likeliest characters that together hold this probability, above 0 and at most 1."""

    min_p: Optional[float] = None
    """Draw among the characters that have at least this fraction of the likeliest one's probability, 0 to 1."""

    num_samples: int = 1
    """Texts to generate side by side."""

    seed: int = 0
    """Seed of the draws; the same seed gives the same text."""

    weights: WeightsDtype = "auto"
    """Number format of the weights: float32, bfloat16, int8 (eight bits, for processors), or auto (the model's)."""

    def __post_init__(self) -> None:
        _require_number(self, "length", "a whole number of at least 0", 0, 10**9)
        _require_number(self, "temperature", "at least 0 and finite", 0, 1e9)
        if self.top_k is not None:
            _require_counts(self, "top_k")
        if self.top_p is not None:
            _require_number(self, "top_p", "above 0 and at most 1", 0, 1, open_ends="low")
        if self.min_p is not None:
            _require_number(self, "min_p", "between 0 and 1", 0, 1)
        _require(self.weights in get_args(WeightsDtype), "weights", self.weights, "auto, float32, bfloat16 or int8")
        _require_counts(self, "num_samples")
        _require_number(self, "seed", "a whole number from 0 to 4294967295", 0, 2**32 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """How weights learn from a text while they score it; see `charjax.dynamic_score`.

    The defaults helped most, or nearly, a model of 2 x 256 units that was trained on Shakespeare's plays, on a part of
    them that it had not seen; and they helped on a text of another kind.
    """

    seq_len: int = 20
    """Characters that are scored before the weights learn from them."""

    learning_rate: float = 4e-4
    """About how far a weight moves at each step; 0 learns nothing."""

    decay: float = 3e-4
    """What part of the way back to where they began weights are drawn at each step; 0 never draws back."""

    def __post_init__(self) -> None:
        _require_number(self, "seq_len", "a whole number from 1 to 4000", 1, 4000)
        _require_number(self, "learning_rate", "at least 0 and finite", 0, _LARGEST_FLOAT32)
        _require_number(self, "decay", "at least 0 and finite", 0, _LARGEST_FLOAT32)


def from_dict(kind: type[ConfigT], values: Any) -> ConfigT:
    """Builds a config from JSON or TOML values.

    Raises:
        UserError: a name that the config does not have, a value of the wrong type or out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{kind.__name__} must be an object, not {type(values).__name__}")
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise UserError(f"{kind.__name__} has no field {in_short(unknown[0])}")
    return kind(**values)
