"""Correlations between every hidden unit and every text feature (Karpathy et al. 2015)."""

from typing import NamedTuple

import numpy as np

from charjax.analysis.activations import GROUP, Unit, read_side_by_side
from charjax.analysis.features import FEATURES, FeatureReader
from charjax.array_types import Params
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.generation.inputs import check_vocab, checked_ids
from charjax.model import CharLSTM

# The text is divided into stretches, used alternately to select units and to check the selection. With two halves
# instead, units would be selected only on the first half of the text, preface included.
LONGEST_STRETCH, LEAST_STRETCHES = 4096, 8
# The length of the stretches that are compared to find where a feature varies most.
STRETCH_TO_SHOW = 500
# Series are float32 values of order 1: a standard deviation below float32 resolution counts as zero.
_RESOLUTION = 1e-7


class Correlations(NamedTuple):
    """Correlations between features and units (Pearson's r, [F, L, H] float64); 0 if either is constant.

    Attributes:
        whole: over the whole text.
        choice: over every other stretch of the text, for selecting units.
        check: over the remaining stretches, which show whether a unit was selected by chance.
        varies: [F] bool, whether the feature varies in the text.
        varies_in_both: [F] bool, whether it varies both in the stretches of `choice` and in those of `check`.
        mean: [F] float64, the features' means; for a binary feature, the fraction of characters where it is 1.
        liveliest: [F] int64, the start of the stretch in which the feature varies most; stretches begin at multiples of
            `STRETCH_TO_SHOW`, and ties go to the first.
        characters: the number of characters read.
    """

    whole: np.ndarray
    choice: np.ndarray
    check: np.ndarray
    varies: np.ndarray
    varies_in_both: np.ndarray
    mean: np.ndarray
    liveliest: np.ndarray
    characters: int

    def best(self, feature: int, top: int) -> list[Unit]:
        """Returns the `top` units that correlate most strongly (with either sign) with a feature, based on `choice`."""
        strength = np.abs(self.choice[feature])
        order = np.argsort(-strength, axis=None, kind="stable")[:top]
        return [Unit(*map(int, np.unravel_index(number, strength.shape))) for number in order]


def unit_correlations(model: CharLSTM, params: Params, vocab: Vocab, ids: np.ndarray) -> Correlations:
    """Correlates every unit's tanh(c) with each of `features.FEATURES`, both measured after each character.

    The text is read once, as parts in parallel; every part but the first starts up to 1,024 characters early to warm up
    its state. Sums are accumulated in float64, and memory use does not grow with the length of the text.

    Args:
        model: the model.
        params: its parameters.
        vocab: its vocabulary.
        ids: [N] integer, the text.

    Raises:
        UserError: there are fewer than two characters, ids are not in [0, V), or the model's state is not finite.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, unit_correlations
        >>> vocab = Vocab.from_text('"coffee"')
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> found = unit_correlations(model, params, vocab, vocab.encode('"coffee"' * 9))
        >>> found.whole.shape, len(found.best(0, top=3))  # 12 features; the first is "quotes"
        ((12, 1, 8), 3)
    """
    check_vocab(model, vocab)
    text = checked_ids(ids, model.vocab_size, "[N]", dtype=None)
    if len(text) < 2:
        raise UserError(f"ids must contain at least 2 characters, not {len(text)}")
    shape = (len(FEATURES), model.hidden_layers, model.hidden_dim)
    units = model.hidden_layers * model.hidden_dim
    halves = [Moments.of(np.zeros((len(FEATURES), 0)), np.zeros((0, units)))] * 2
    stretch = min(LONGEST_STRETCH, -(-len(text) // LEAST_STRETCHES))
    reader, variation = FeatureReader(vocab), _Variation()
    for begin in range(0, len(text), GROUP):
        features = reader.read(text[begin : begin + GROUP])
        variation.add(features)
        for positions, cells in read_side_by_side(model, params, vocab, text, begin):
            if not np.isfinite(cells).all():
                raise UserError("the model's cell states are not finite; train it again with a lower learning rate")
            for half, inside in enumerate(_by_half(positions, stretch)):
                found = Moments.of(features[:, positions[inside] - begin], cells[inside].reshape(-1, units))
                halves[half] = halves[half].merged(found)
    whole = halves[0].merged(halves[1])
    return Correlations(
        whole=whole.correlations().reshape(shape),
        choice=halves[0].correlations().reshape(shape),
        check=halves[1].correlations().reshape(shape),
        varies=whole.varies(),
        varies_in_both=halves[0].varies() & halves[1].varies(),
        mean=whole.feature_means,
        liveliest=variation.liveliest(),
        characters=len(text),
    )


class _Variation:
    """Finds the stretch of the text in which each feature varies most."""

    def __init__(self) -> None:
        self._most, self._begins = np.zeros(len(FEATURES)), np.zeros(len(FEATURES), np.int64)
        self._rest, self._begin = np.zeros((len(FEATURES), 0), np.float32), 0

    def add(self, features: np.ndarray) -> None:
        """Adds the next features [F, n]."""
        waiting = np.concatenate([self._rest, features], axis=1)
        whole = waiting.shape[1] // STRETCH_TO_SHOW * STRETCH_TO_SHOW
        self._compare(waiting[:, :whole].reshape(len(FEATURES), -1, STRETCH_TO_SHOW))
        self._rest = waiting[:, whole:]

    def liveliest(self) -> np.ndarray:
        """Returns the start of the stretch found for each feature, [F] int64; the last stretch may be shorter."""
        self._compare(self._rest[:, None])
        return self._begins

    def _compare(self, stretches: np.ndarray) -> None:
        """Compares stretches [F, n, characters] with the best so far."""
        if stretches.size == 0:
            return
        deviations = stretches.std(axis=2, dtype=np.float64)
        best = deviations.argmax(axis=1)
        most = deviations.max(axis=1)
        better = most > self._most
        self._begins[better] = self._begin + best[better] * STRETCH_TO_SHOW
        self._most[better] = most[better]
        self._begin += stretches.shape[1] * STRETCH_TO_SHOW


def _by_half(positions: np.ndarray, stretch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns masks of the positions in even and in odd stretches of the text; -1 is in neither."""
    odd = positions // stretch % 2 == 1
    return (positions >= 0) & ~odd, (positions >= 0) & odd


class Moments(NamedTuple):
    """Means of F feature series and U unit series, with the sums of squares and products about them, in float64.

    Attributes:
        size: the length of the series.
        feature_means: [F].
        unit_means: [U].
        feature_squares: [F], sums of squared deviations from the features' means.
        unit_squares: [U], sums of squared deviations from the units' means.
        products: [F, U], sums of products of both deviations.
    """

    size: int
    feature_means: np.ndarray
    unit_means: np.ndarray
    feature_squares: np.ndarray
    unit_squares: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, units: np.ndarray) -> "Moments":
        """Computes the moments of features [F, n] and units [n, U], all finite; n may be 0."""
        size = units.shape[0]
        features_Fn, units_nU = features.astype(np.float64), units.astype(np.float64)
        mean_F, mean_U = features_Fn.sum(axis=1) / max(size, 1), units_nU.sum(axis=0) / max(size, 1)
        features_Fn -= mean_F[:, None]
        units_nU -= mean_U[None]
        squares_F = np.einsum("fn,fn->f", features_Fn, features_Fn)
        squares_U = np.einsum("nu,nu->u", units_nU, units_nU)
        return cls(size, mean_F, mean_U, squares_F, squares_U, features_Fn @ units_nU)

    def merged(self, other: "Moments") -> "Moments":
        """Returns the moments of the two series combined.

        They are merged through their means (Chan, Golub, LeVeque 1979): subtracting the squared mean from the sum of
        squares would leave no significant digits for a unit that hardly varies.
        """
        size = self.size + other.size
        share = other.size / max(size, 1)
        weight = self.size * share
        apart_F, apart_U = other.feature_means - self.feature_means, other.unit_means - self.unit_means
        return Moments(
            size,
            self.feature_means + share * apart_F,
            self.unit_means + share * apart_U,
            self.feature_squares + other.feature_squares + weight * apart_F**2,
            self.unit_squares + other.unit_squares + weight * apart_U**2,
            self.products + other.products + weight * np.outer(apart_F, apart_U),
        )

    def varies(self) -> np.ndarray:
        """Returns which features vary, [F] bool."""
        return self._deviations(self.feature_squares) > _RESOLUTION

    def correlations(self) -> np.ndarray:
        """Returns Pearson's r, [F, U]; 0 if either does not vary."""
        deviation_F, deviation_U = self._deviations(self.feature_squares), self._deviations(self.unit_squares)
        vary_FU = np.outer(deviation_F > _RESOLUTION, deviation_U > _RESOLUTION)
        scale_FU = np.where(vary_FU, np.outer(deviation_F, deviation_U) * max(self.size, 1), 1.0)
        return np.clip(np.where(vary_FU, self.products / scale_FU, 0.0), -1.0, 1.0)

    def _deviations(self, squares: np.ndarray) -> np.ndarray:
        return np.sqrt(squares / max(self.size, 1))
