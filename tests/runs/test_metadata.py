"""RunInfo and Progress: to JSON and back, and nothing else accepted."""

import dataclasses
import json

import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax.errors import UserError
from charjax.runs.compatibility import describe_run
from charjax.runs.metadata import Progress, RunInfo

CORPUS = small_corpus()
INFO = describe_run(small_model(CORPUS), CORPUS, SMALL)
PROGRESS = Progress(step=3, val_loss=None, best_step=2, best_val_loss=1.5, train_nats=7.0, train_count=4)


def test_they_survive_json():
    assert RunInfo.from_dict(json.loads(json.dumps(INFO.to_dict()))) == INFO
    assert Progress.from_dict(json.loads(json.dumps(PROGRESS.to_dict()))) == PROGRESS


def test_an_integer_is_accepted_for_a_float():
    assert Progress.from_dict({**PROGRESS.to_dict(), "epoch": 2}).epoch == 2.0


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Progress)])
@pytest.mark.parametrize("value", ["1", [], {}, True])
def test_numbers_of_another_type_are_named(name, value):
    with pytest.raises(UserError, match=name):
        Progress.from_dict({**PROGRESS.to_dict(), name: value})


@pytest.mark.parametrize("values", [None, [], {}, {"epoch": 1.0}, {**PROGRESS.to_dict(), "more": 1}])
def test_other_fields_are_refused(values):
    with pytest.raises(UserError, match="Progress must have the fields"):
        Progress.from_dict(values)


@pytest.mark.parametrize("part", list(INFO.to_dict()))
@pytest.mark.parametrize("value", [None, 3, [], {"surprise": 1}])
def test_parts_of_another_kind_are_refused(part, value):
    with pytest.raises(UserError):
        RunInfo.from_dict({**INFO.to_dict(), part: value})


@pytest.mark.parametrize(("part", "name", "value"), [
    ("model", "hidden_dim", -1), ("model", "hidden_dim", "12"), ("model", "implementation", 5),
    ("train", "seed", 1.5), ("train", "sample_context", 3), ("data", "vocab", "other"), ("corpus", "sha256", 1),
])  # fmt: skip
def test_values_out_of_range_are_named(part, name, value):
    values = INFO.to_dict()
    values[part] = {**values[part], name: value}
    with pytest.raises(UserError, match=name):
        RunInfo.from_dict(values)


def test_an_older_run_keeps_the_averages_that_it_was_trained_with():
    values = INFO.to_dict()
    values["train"] = {name: value for name, value in values["train"].items() if not name.startswith("beta")}
    train = RunInfo.from_dict(values).train
    assert (train.beta1, train.beta2) == (0.9, 0.99)
