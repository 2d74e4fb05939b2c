"""Model sizes and training recipes for given time budgets, adapted to the length of the text; does not import jax."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

from charjax.config import ModelConfig, TrainConfig
from charjax.errors import UserError, checked_whole, in_short

PresetName = Literal["tiny", "small", "medium", "large"]

# With more passes than this, the model memorizes the text whatever the dropout.
MOST_PASSES = 30
MOST_DROPOUT = 0.65
# Evaluating and saving after every pass over a short text would take longer than the passes themselves.
MOST_EVALUATIONS = 10
BATCH_SIZE, SEQ_LEN = 32, 50


class Preset(NamedTuple):
    """A model size, `model`, and a training recipe, `train`; see `preset`."""

    model: ModelConfig
    train: TrainConfig


@dataclasses.dataclass(frozen=True)
class _Size:
    """A preset; `characters` is the total number of characters to train on, counting every pass over the text."""

    hidden_dim: int
    learning_rate: float
    weight_decay: float
    characters: int


# docs/learning.md describes the experiments behind these numbers.
_SIZES = {
    "tiny": _Size(256, 0.02, 0.01, 1_000_000),
    "small": _Size(512, 0.01, 0.01, 3_000_000),
    "medium": _Size(1024, 0.007, 0.1, 5_000_000),
    "large": _Size(1536, 0.005, 0.1, 4_000_000),
}


def preset(name: PresetName, characters: int, **given: Any) -> Preset:
    """Returns a model size and a training recipe suited to the length of the text.

    On two CPU cores with AVX-512 and bfloat16, "tiny" trains for about ten seconds, "small" for a minute or two,
    "medium" for ten minutes and "large" for twenty, whatever the length of the text: the number of passes, which is at
    most 30 and may be less than one, is adjusted to match. The more passes, the higher the dropout.

    Args:
        name: "tiny", "small", "medium" or "large".
        characters: length of the training text, e.g. len(corpus.train).
        **given: `ModelConfig` and `TrainConfig` fields to override, e.g. epochs=2. Unless dropout is passed, it depends
            on epochs and hidden_dim.

    Raises:
        TypeError: `given` contains a name that is not a field of either.
        UserError: there is no such preset, characters is not a positive integer, or a field is out of range.

    Examples:
        >>> from charjax import preset
        >>> small = preset("small", characters=1_000_000)
        >>> small.model.hidden_dim, small.model.dropout, small.train.epochs
        (512, 0.27, 3.0)
        >>> preset("small", characters=1_000_000, epochs=1).model.dropout
        0.0
    """
    if not isinstance(name, str) or name not in _SIZES:
        raise UserError(
            f"the preset name must be {', '.join(list(_SIZES)[:-1])} or {list(_SIZES)[-1]}, not {in_short(name)}"
        )
    size, characters = _SIZES[name], checked_whole("characters", characters)
    of_model = {field.name for field in dataclasses.fields(ModelConfig)}
    train = TrainConfig(
        **{
            "batch_size": BATCH_SIZE,
            "seq_len": SEQ_LEN,
            # Three digits, since progress and `info` show the number in full.
            "epochs": float(f"{min(size.characters / characters, MOST_PASSES):.3g}"),
            "learning_rate": size.learning_rate,
            "weight_decay": size.weight_decay,
            **{field: value for field, value in given.items() if field not in of_model},
        }
    )
    if train.epochs > MOST_EVALUATIONS and train.eval_every is None:
        steps_per_pass = -(-characters // (train.batch_size * train.seq_len))
        every = math.ceil(train.epochs / MOST_EVALUATIONS) * steps_per_pass
        train = dataclasses.replace(train, eval_every=every)
    model: dict[str, Any] = {"hidden_dim": size.hidden_dim} | {
        field: value for field, value in given.items() if field in of_model
    }
    model = {"dropout": _dropout(train.epochs, ModelConfig(**model).hidden_dim)} | model
    return Preset(ModelConfig(**model), train)


def _dropout(passes: float, hidden_dim: int) -> float:
    """Returns a dropout rate that keeps a model from memorizing the text; it grows with `passes` and `hidden_dim`."""
    return round(min(MOST_DROPOUT, max(0.0, 0.17 * math.log2(passes * hidden_dim / 512))), 2)
