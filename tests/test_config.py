"""Configurations: every bound is checked, and the message names a wrong value."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import DataConfig, ModelConfig, SampleConfig, TrainConfig, from_dict
from charjax.errors import UserError

COUNTS = {
    ModelConfig: ["hidden_dim"],
    TrainConfig: [
        "batch_size",
        "seq_len",
        "decay_every",
        "eval_every",
        "checkpoint_every",
        "steps_per_call",
        "microbatches",
        "text_memory_mb",
    ],
    SampleConfig: ["top_k", "num_samples"],
}
# Values just inside the bounds, and just outside.
BOUNDS = [
    (DataConfig, "train_frac", [1e-9, 1 - 1e-9], [0, 1, -0.5, 2]),
    (ModelConfig, "hidden_layers", [1, 1000], [0, 1001, 1.5]),
    (ModelConfig, "dropout", [0, 0.999], [-1e-9, 1]),
    (TrainConfig, "learning_rate", [1e-9], [0, -1]),
    (TrainConfig, "warmup_frac", [0, 1], [-1e-9, 1.0001]),
    (TrainConfig, "final_lr_frac", [0, 1], [-1e-9, 1.0001]),
    (TrainConfig, "decay_factor", [1e-9, 1], [0, 1.0001]),
    (TrainConfig, "weight_decay", [0], [-1e-9]),
    (TrainConfig, "clip_norm", [1e-9], [0, 1e-10, 1e-300]),
    (TrainConfig, "seed", [0, 2**32 - 1], [-1, 2**32, 0.5]),
    (TrainConfig, "sample_length", [0], [-1, 0.5]),
    (SampleConfig, "length", [0], [-1, 1.5]),
    (SampleConfig, "temperature", [0, 5], [-1e-9]),
    (SampleConfig, "top_p", [1e-9, 1], [0, 1.0001]),
    (SampleConfig, "seed", [0, 2**32 - 1], [-1, 2**32]),
]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in COUNTS.items() for name in names])
def test_counts_are_whole_and_positive(kind, name):
    assert getattr(kind(**{name: 1}), name) == 1
    for value in (0, -1, 1.5, "1", True):
        with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1, not {value!r}"):
            kind(**{name: value})


def test_a_float_is_one_whatever_was_given():
    configs = [TrainConfig(epochs=given, clip_norm=given) for given in (6, 6.0, np.float32(6), np.int64(6))]
    assert {repr(config) for config in configs} == {repr(configs[1])}
    assert repr(from_dict(TrainConfig, {"epochs": 10})) == repr(TrainConfig())
    assert repr(SampleConfig(top_p=1, seed=2).top_p) == "1.0"


@pytest.mark.parametrize(("kind", "name", "inside", "outside"), BOUNDS)
def test_bounds(kind, name, inside, outside):
    for value in inside:
        assert getattr(kind(**{name: value}), name) == value
    for value in [*outside, math.nan, math.inf, -math.inf, True, "1"]:
        with pytest.raises(UserError, match=f"{name} must be"):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (DataConfig, "vocab", "latin"), (ModelConfig, "dtype", "float16"), (TrainConfig, "schedule", "linear"),
        (ModelConfig, "implementation", 3), (TrainConfig, "sample_context", None),
    ],
)  # fmt: skip
def test_choices(kind, name, value):
    with pytest.raises(UserError, match=f"{name} must be .*, not {value!r}"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", [DataConfig, ModelConfig, TrainConfig])
def test_they_survive_json(kind):
    assert from_dict(kind, dataclasses.asdict(kind())) == kind()


def test_counts_have_a_limit_that_the_message_names():
    with pytest.raises(UserError, match="hidden_dim must be at most 100000000, not 100000001"):
        ModelConfig(hidden_dim=10**8 + 1)
    with pytest.raises(UserError, match="steps_per_call must be at most 2147483647"):
        TrainConfig(steps_per_call=2**31)


def test_unknown_names_and_other_types_are_refused():
    with pytest.raises(UserError, match="ModelConfig has no field 'hidden'"):
        from_dict(ModelConfig, {"hidden": 3})
    with pytest.raises(UserError, match="ModelConfig must be an object, not list"):
        from_dict(ModelConfig, [])


def test_every_field_has_its_help():
    import ast
    import inspect

    from charjax import config

    for node in ast.walk(ast.parse(inspect.getsource(config))):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}.{field.target.id}"


def test_scalars_of_numpy_and_jax_are_numbers():
    config = TrainConfig(batch_size=np.int64(8), learning_rate=np.float64(0.5), seed=jnp.uint32(7))
    assert (config.batch_size, config.learning_rate, config.seed) == (8, 0.5, 7)
    assert {type(config.batch_size), type(config.learning_rate), type(config.seed)} == {int, float}
    with pytest.raises(UserError, match="batch_size must be a whole number of at least 1, not 0"):
        TrainConfig(batch_size=np.int32(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1e30}, "learning_rate must be at most 1e.09, not 1e.30"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0 and finite, not inf"),
        ({"seq_len": 10**15}, "seq_len must be at most 1000000000000, not 10"),
        ({"epochs": 0}, "epochs must be above 0 and finite, not 0"),
        ({"seed": None}, "seed must be a whole number from 0 to 4294967295, not None"),
    ],
)
def test_the_limit_that_was_exceeded_is_named(options, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)
