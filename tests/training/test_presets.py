"""Presets: sizes and recipes by the length of the text."""

import re

import pytest

from charjax.config import ModelConfig, TrainConfig
from charjax.data.batching import SequenceLayout
from charjax.errors import UserError
from charjax.training.plan import steps_of_run
from charjax.training.presets import MOST_DROPOUT, MOST_PASSES, preset

NAMES = ("tiny", "small", "medium", "large")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("characters", [1, 1_000, 50_000, 1_000_000, 10**12])
def test_a_preset_is_a_valid_configuration_for_any_length(name, characters):
    model, train = preset(name, characters)
    assert isinstance(model, ModelConfig)
    assert isinstance(train, TrainConfig)
    assert 0 < train.epochs <= MOST_PASSES
    assert 0 <= model.dropout <= MOST_DROPOUT


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_text_is_read_less_often_with_less_dropout(name):
    lengths = [10_000 * 4**n for n in range(8)]
    passes = [preset(name, length).train.epochs for length in lengths]
    dropout = [preset(name, length).model.dropout for length in lengths]
    assert passes == sorted(passes, reverse=True)
    assert dropout == sorted(dropout, reverse=True)
    assert passes[0] == MOST_PASSES
    assert dropout[-1] == 0
    assert dropout[0] > 0.4
    assert preset("tiny", 54_000).train.epochs == 18.5  # not 18.518518518518519


@pytest.mark.parametrize("characters", [999, 1_000, 45_000, 1_000_000])
def test_a_short_text_is_evaluated_after_whole_passes(characters):
    train = preset("small", characters).train
    layout = SequenceLayout.of(characters + 1, batch_size=train.batch_size, seq_len=train.seq_len)
    every = train.eval_every or layout.windows
    assert every % layout.windows == 0
    assert steps_of_run(train, layout.windows) <= 10 * every


def test_the_time_does_not_grow_with_the_text():
    assert preset("small", 10**8).train.epochs * 10**8 == preset("small", 10**9).train.epochs * 10**9


def test_the_dropout_follows_what_is_set_instead():
    assert preset("tiny", 20_000).model.dropout > 0.5
    chosen = preset("tiny", 20_000, epochs=2, batch_size=8)
    assert (chosen.model.dropout, chosen.train.epochs, chosen.train.batch_size) == (0.0, 2, 8)
    assert preset("tiny", 20_000, hidden_dim=16).model.dropout < preset("tiny", 20_000).model.dropout
    assert preset("tiny", 20_000, dropout=0.3, epochs=2).model.dropout == 0.3
    assert preset("tiny", 20_000, eval_every=7).train.eval_every == 7
    with pytest.raises(TypeError, match="epoch"):
        preset("tiny", 20_000, epoch=2)


def test_larger_presets_train_larger_models_for_longer():
    chosen = [preset(name, 10**9) for name in NAMES]
    sizes = [model.hidden_dim for model, _ in chosen]
    costs = [model.hidden_dim**2 * train.epochs for model, train in chosen]
    assert sizes == sorted(set(sizes))
    assert costs == sorted(set(costs))


def test_the_documented_sizes_are_those_of_the_presets(root):
    table = (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| 1 x (\d+) \| [\d.]+ million \| (.*) \|$", table, re.MULTILINE)
    assert tuple(name for name, *_ in rows) == NAMES
    for name, hidden_dim, cells in rows:
        for characters, cell in zip((100_000, 1_000_000, 10_000_000), cells.split(" | "), strict=True):
            model, train = preset(name, characters)
            shown = [float(number) for number in re.findall(r"[\d.]+", cell)]
            assert [int(hidden_dim), *shown] == [model.hidden_dim, train.epochs, model.dropout]


@pytest.mark.parametrize(("name", "characters", "message"), [
    ("huge", 10, "the preset name must be tiny, small, medium or large, not 'huge'"),
    (None, 10, "the preset name must be tiny, .* not None"),
    (["tiny"], 10, "the preset name must be tiny, .*"),
    ("tiny", 0, "characters must be a whole number of at least 1, not 0"),
    ("tiny", 1.5, "characters must be a whole number"),
])  # fmt: skip
def test_other_arguments_are_refused(name, characters, message):
    with pytest.raises(UserError, match=message):
        preset(name, characters)
