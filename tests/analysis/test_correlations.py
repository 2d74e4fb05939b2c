"""The search finds units that were made for it, and its numbers are those of activations and features."""

import numpy as np
import pytest
from helpers.neuron_models import COUNTER, LATCH, PROSE, hand_made

from charjax.analysis.activations import BURN_IN, ROWS, activations
from charjax.analysis.correlations import LEAST_STRETCHES, unit_correlations
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
    # More than one group of parts, and an end within a window of the second.
    ids = VOCAB.encode((PROSE * 2000)[: group + 3 * BURN_IN + 5])
    cells = activations(model, params, ids[None])[0].reshape(len(ids), -1).astype(float)
    expected = np.corrcoef(FeatureReader(VOCAB).read(ids).astype(float), cells.T)[: len(FEATURES), len(FEATURES) :]
    found = unit_correlations(model, params, VOCAB, ids)
    np.testing.assert_allclose(found.whole.reshape(len(FEATURES), -1), expected, atol=1e-5)


def test_features_that_a_text_has_not_are_told_of():
    found = correlate(*hand_made(VOCAB), "plain words alone " * 20 + 'and "quotes" at the end')
    quotes, digits = NAMES.index("quotes"), NAMES.index("digits")
    assert (found.varies[quotes], found.varies_in_both[quotes]) == (True, False)
    assert not found.varies[digits]
    assert not found.whole[digits].any()
    for values in found[:-1]:
        assert np.isfinite(values).all()


def test_where_a_feature_first_changes():
    found = correlate(*hand_made(VOCAB), 'abc "d"\ne 5')
    first = dict(zip(NAMES, found.first_change.tolist(), strict=True))
    assert (first["quotes"], first["digits"], first["line-position"], first["nesting"]) == (4, 10, 1, -1)


def test_a_text_too_short_to_correlate():
    with pytest.raises(UserError, match="at least 2 characters"):
        correlate(*hand_made(VOCAB), "a")
