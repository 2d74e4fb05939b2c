"""Correlations in one pass are those of the whole series."""

import itertools

import numpy as np
import pytest

from charjax.analysis.correlations import Moments


def series(count=700):
    draw = np.random.default_rng(0)
    features = np.stack([draw.integers(0, 2, count), draw.integers(0, 60, count), np.arange(count)]).astype(np.float32)
    units = draw.normal(size=(count, 4)) * 0.1 + 0.3 * features[0][:, None] - 0.01 * features[1][:, None]
    return features, units.astype(np.float32)


def measure(features, units, *cuts):
    moments = Moments(len(features), units.shape[1])
    edges = [0, *cuts, units.shape[0]]
    for begin, end in itertools.pairwise(edges):
        moments.add(features[:, begin:end], units[begin:end])
    return moments


@pytest.mark.parametrize("cuts", [(), (1,), (0, 300, 300, 699), (100, 350)])
def test_it_is_pearsons_however_the_series_is_cut(cuts):
    features, units = series()
    expected = np.corrcoef(features.astype(float), units.T.astype(float))[:3, 3:]
    moments = measure(features, units, *cuts)
    np.testing.assert_allclose(moments.correlations(), expected, atol=1e-12)
    np.testing.assert_allclose(moments.means(), features.mean(axis=1, dtype=float))


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


def test_what_never_changes_correlates_with_nothing():
    features, units = series()
    features[0], units[:, 1] = 1.0, np.float32(0.1)
    moments = measure(features, units, 3, 333)
    assert moments.varies().tolist() == [False, True, True]
    assert not moments.correlations()[0].any()
    assert not moments.correlations()[:, 1].any()
    assert np.isfinite(moments.correlations()).all()


def test_nothing_correlates_with_nothing():
    moments = Moments(2, 3)
    assert not moments.correlations().any()
    assert not moments.varies().any()
    assert not moments.merged(Moments(2, 3)).correlations().any()
