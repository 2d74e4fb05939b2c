"""Units made for a feature are found, and correlations are those of activations and features."""

import functools
import itertools

import numpy as np
import pytest
from helpers.neuron_models import COUNTER, LATCH, PROSE, hand_made

from charjax.analysis import correlations
from charjax.analysis.activations import BURN_IN, ROWS, activations
from charjax.analysis.correlations import LEAST_STRETCHES, Moments, unit_correlations
from charjax.analysis.features import FEATURES, FeatureReader
from charjax.data.vocab import Vocab
from charjax.errors import UserError

VOCAB = Vocab.ascii()
NAMES = [feature.name for feature in FEATURES]


def correlate(model, params, text):
    return unit_correlations(model, params, VOCAB, VOCAB.encode(text))


def test_units_made_to_follow_quotes_and_lines_are_found():
    found = correlate(*hand_made(VOCAB), PROSE * 6)
    assert found.best(NAMES.index("quotes"), 1) == [LATCH]
    assert found.best(NAMES.index("line-position"), 1) == [COUNTER]
    for feature, unit in (("quotes", LATCH), ("line-position", COUNTER)):
        for r in (found.whole, found.choice, found.check):
            assert r[NAMES.index(feature)][unit] > 0.97


def test_a_unit_that_follows_a_feature_upside_down_is_found():
    found = correlate(*hand_made(VOCAB, sign=-1), PROSE * 6)
    assert found.best(NAMES.index("quotes"), 1) == [LATCH]
    assert found.whole[NAMES.index("quotes")][LATCH] < -0.97


def test_correlations_are_those_of_activations_and_features():
    model, params = hand_made(VOCAB)
    ids = VOCAB.encode(PROSE * 5)
    cells = activations(model, params, ids[None])[0].reshape(len(ids), -1).astype(float)
    features = FeatureReader(VOCAB).read(ids).astype(float)
    found = unit_correlations(model, params, VOCAB, ids)
    odd = np.arange(len(ids)) // -(-len(ids) // LEAST_STRETCHES) % 2 == 1
    for r, part in ((found.whole, odd | ~odd), (found.choice, ~odd), (found.check, odd)):
        expected = np.corrcoef(features[:, part], cells[part].T)[: len(FEATURES), len(FEATURES) :]
        np.testing.assert_allclose(r.reshape(len(FEATURES), -1), expected, atol=1e-6)
    np.testing.assert_allclose(found.mean, features.mean(axis=1))
    assert found.characters == len(ids)


@pytest.mark.parametrize("group", [ROWS * BURN_IN, 2 * ROWS * BURN_IN])
def test_parts_side_by_side_give_what_one_pass_does(monkeypatch, group):
    monkeypatch.setattr("charjax.analysis.activations.GROUP", group)
    monkeypatch.setattr("charjax.analysis.correlations.GROUP", group)
    model, params = hand_made(VOCAB)
    # More than one group of parts, and an end within a chunk of the second.
    ids = VOCAB.encode((PROSE * 2000)[: group + 3 * BURN_IN + 5])
    cells = activations(model, params, ids[None])[0].reshape(len(ids), -1).astype(float)
    expected = np.corrcoef(FeatureReader(VOCAB).read(ids).astype(float), cells.T)[: len(FEATURES), len(FEATURES) :]
    found = unit_correlations(model, params, VOCAB, ids)
    np.testing.assert_allclose(found.whole.reshape(len(FEATURES), -1), expected, atol=1e-5)


def test_features_that_do_not_vary_are_marked():
    found = correlate(*hand_made(VOCAB), "plain words alone " * 20 + 'and "quotes" at the end')
    quotes, digits = NAMES.index("quotes"), NAMES.index("digits")
    assert (found.varies[quotes], found.varies_in_both[quotes]) == (True, False)
    assert not found.varies[digits]
    assert not found.whole[digits].any()
    for values in found[:-1]:
        assert np.isfinite(values).all()


def test_where_a_feature_varies_most(monkeypatch):
    monkeypatch.setattr(correlations, "STRETCH_TO_SHOW", 10)
    text = "no quotes." + 'one "quote' + '" and "two' + '" "th" "re' + " digits: 1" + " 12345, 67" + "x"
    found = correlate(*hand_made(VOCAB), text)
    most = dict(zip(NAMES, found.liveliest.tolist(), strict=True))
    features = FeatureReader(VOCAB).read(VOCAB.encode(text))
    for name in ("quotes", "digits", "line-position", "nesting"):
        stretches = [features[NAMES.index(name), begin : begin + 10].std() for begin in range(0, len(text), 10)]
        assert most[name] == 10 * int(np.argmax(stretches))
    assert (most["digits"], most["nesting"]) == (50, 0)
    in_parts = correlations._Variation()
    for part in np.split(features, [3, 25, 26, 50], axis=1):  # which cuts stretches in two
        in_parts.add(part)
    assert in_parts.liveliest().tolist() == found.liveliest.tolist()


def test_a_text_too_short_to_correlate():
    with pytest.raises(UserError, match="at least 2 characters"):
        correlate(*hand_made(VOCAB), "a")


# ---- moments


def series(count=700):
    rng = np.random.default_rng(0)
    features = np.stack([rng.integers(0, 2, count), rng.integers(0, 60, count), np.arange(count)]).astype(np.float32)
    units = rng.normal(size=(count, 4)) * 0.1 + 0.3 * features[0][:, None] - 0.01 * features[1][:, None]
    return features, units.astype(np.float32)


def measure(features, units, *cuts):
    edges = [0, *cuts, units.shape[0]]
    parts = (Moments.of(features[:, a:b], units[a:b]) for a, b in itertools.pairwise(edges))
    return functools.reduce(Moments.merged, parts)


@pytest.mark.parametrize("cuts", [(), (1,), (0, 300, 300, 699), (100, 350)])
def test_moments_give_pearsons_r_however_the_series_is_cut(cuts):
    features, units = series()
    expected = np.corrcoef(features.astype(float), units.T.astype(float))[:3, 3:]
    moments = measure(features, units, *cuts)
    np.testing.assert_allclose(moments.correlations(), expected, atol=1e-12)
    np.testing.assert_allclose(moments.feature_means, features.mean(axis=1, dtype=float))


def test_merged_halves_are_the_whole():
    features, units = series()
    halves = measure(features[:, :250], units[:250]), measure(features[:, 250:], units[250:])
    np.testing.assert_allclose(
        halves[0].merged(halves[1]).correlations(), measure(features, units).correlations(), atol=1e-12
    )


def test_a_unit_that_hardly_moves_is_measured_as_well_as_any():
    features, units = series()
    moved = np.float32(0.75) + units.astype(np.float64) * 1e-5  # 1 + such a square leaves 6 digits of it
    expected = np.corrcoef(features.astype(float), moved.T)[:3, 3:]
    np.testing.assert_allclose(measure(features, moved, 5, 300).correlations(), expected, atol=1e-9)


def test_constant_series_correlate_with_nothing():
    features, units = series()
    features[0], units[:, 1] = 1.0, np.float32(0.1)
    moments = measure(features, units, 3, 333)
    assert moments.varies().tolist() == [False, True, True]
    assert not moments.correlations()[0].any()
    assert not moments.correlations()[:, 1].any()
    assert np.isfinite(moments.correlations()).all()


def test_empty_series_correlate_with_nothing():
    moments = Moments.of(np.zeros((2, 0)), np.zeros((0, 3)))
    assert not moments.correlations().any()
    assert not moments.varies().any()
    assert not moments.merged(moments).correlations().any()
