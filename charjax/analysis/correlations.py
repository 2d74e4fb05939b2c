"""Which units of a network follow what in a text: every one is held against every feature (Karpathy et al. 2015)."""

from typing import NamedTuple

import numpy as np

from charjax.analysis.activations import GROUP, Unit, read_side_by_side
from charjax.analysis.features import FEATURES, FeatureReader
from charjax.array_types import Params
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.model import CharLSTM

# A text is divided into stretches, one to choose units by, the next to check the choice. By first and second half, what
# a text begins with, such as its preface, would choose for all of it.
LONGEST_STRETCH, LEAST_STRETCHES = 4096, 8


class Correlations(NamedTuple):
    """How units go with features: Pearson's r, [F, L, H] float64, 0 where one of the two never changes.

    Attributes:
        whole: over the whole text.
        choice: over every other stretch of it, to choose units by.
        check: over the stretches between, which say of a unit so chosen whether that was chance.
        varies: [F] bool, whether a feature changes in the text at all.
        varies_in_both: [F] bool, whether it does both in the stretches to choose by and in those between.
        mean: [F] float64, the features' means; of binary ones the share of characters where they are 1.
        first_change: [F] int64, the first character after which a feature is not what it is after the text's first.
        characters: those read.
    """

    whole: np.ndarray
    choice: np.ndarray
    check: np.ndarray
    varies: np.ndarray
    varies_in_both: np.ndarray
    mean: np.ndarray
    first_change: np.ndarray
    characters: int

    def best(self, feature: int, top: int) -> list[Unit]:
        """The units that go with a feature most closely, rising or falling with it, by `choice`."""
        strength = np.abs(self.choice[feature])
        order = np.argsort(-strength, axis=None, kind="stable")[:top]
        return [Unit(*map(int, np.unravel_index(number, strength.shape))) for number in order]


def unit_correlations(model: CharLSTM, params: Params, vocab: Vocab, ids: np.ndarray) -> Correlations:
    """Correlates every unit's tanh(c) with each of `features.FEATURES`, both after each character.

    The text is read once, as parts side by side. Each but the first begins up to 1,024 characters early, uncounted, to
    warm its state up. Sums are in float64; memory does not grow with the text.

    Args:
        model: the model.
        params: its parameters.
        vocab: its characters.
        ids: [N] integer, the text.

    Raises:
        UserError: fewer than two characters, ids that are not the model's characters, or a model whose state is no
            number.
    """
    text = np.asarray(ids)
    if text.ndim != 1 or len(text) < 2:
        raise UserError(f"ids must be those of one text of at least 2 characters, not of shape {text.shape}")
    shape = (len(FEATURES), model.hidden_layers, model.hidden_dim)
    halves = Moments(shape[0], shape[1] * shape[2]), Moments(shape[0], shape[1] * shape[2])
    stretch = min(LONGEST_STRETCH, -(-len(text) // LEAST_STRETCHES))
    reader, changes = FeatureReader(vocab), _FirstChanges()
    for begin in range(0, len(text), GROUP):
        features = reader.read(text[begin : begin + GROUP])
        changes.look(features)
        for positions, cells in read_side_by_side(model, params, vocab, text, begin):
            if not np.isfinite(cells).all():
                raise UserError("the model's cell states are not numbers; train it anew with a lower learning rate")
            for half, chosen in zip(halves, _by_half(positions, stretch), strict=True):
                half.add(features[:, positions[chosen] - begin], cells[chosen].reshape(-1, shape[1] * shape[2]))
    whole = halves[0].merged(halves[1])
    return Correlations(
        whole=whole.correlations().reshape(shape),
        choice=halves[0].correlations().reshape(shape),
        check=halves[1].correlations().reshape(shape),
        varies=whole.varies(),
        varies_in_both=halves[0].varies() & halves[1].varies(),
        mean=whole.means(),
        first_change=changes.places,
        characters=len(text),
    )


class _FirstChanges:
    """Where each feature first becomes another than it is after the text's first character."""

    def __init__(self) -> None:
        self.places = np.full(len(FEATURES), -1, np.int64)
        self._read = 0
        self._at_first: np.ndarray | None = None

    def look(self, features: np.ndarray) -> None:
        """Goes on with [F, n]."""
        if self._at_first is None:
            self._at_first = features[:, :1]
        changed = features != self._at_first
        new = changed.any(axis=1) & (self.places < 0)
        self.places[new] = self._read + changed.argmax(axis=1)[new]
        self._read += features.shape[1]


def _by_half(positions: np.ndarray, stretch: int) -> tuple[np.ndarray, np.ndarray]:
    """Which positions stand in every other stretch of a text, and which between; -1 stands nowhere."""
    odd = positions // stretch % 2 == 1
    return (positions >= 0) & ~odd, (positions >= 0) & odd


# Series are float32 numbers of about 1: what varies less than that format resolves does not vary.
_RESOLUTION = 1e-7


class Moments:
    """Means, sums of squares and of products about them, in float64.

    Pieces are merged by their means (Chan, Golub, LeVeque 1979): sums of squares about 0, less the mean's, would leave
    nothing of a unit that hardly moves.
    """

    def __init__(self, features: int, units: int) -> None:
        """Begins with nothing known of `features` x `units` pairs."""
        self._count = 0
        self._mean_F, self._mean_U = np.zeros(features), np.zeros(units)
        self._squares_F, self._squares_U = np.zeros(features), np.zeros(units)
        self._products_FU = np.zeros((features, units))

    def add(self, features: np.ndarray, units: np.ndarray) -> None:
        """Takes in n more places: features [F, n] and units [n, U], of finite numbers."""
        count = units.shape[0]
        if not count:
            return
        piece = Moments(features.shape[0], units.shape[1])
        features_Fn, units_nU = features.astype(np.float64), units.astype(np.float64)
        piece._count = count
        piece._mean_F, piece._mean_U = features_Fn.mean(axis=1), units_nU.mean(axis=0)
        features_Fn -= piece._mean_F[:, None]
        units_nU -= piece._mean_U[None]
        piece._squares_F = np.einsum("fn,fn->f", features_Fn, features_Fn)
        piece._squares_U = np.einsum("nu,nu->u", units_nU, units_nU)
        piece._products_FU = features_Fn @ units_nU
        self.__dict__ = self.merged(piece).__dict__

    def merged(self, other: "Moments") -> "Moments":
        """Those of both series, one after the other."""
        merged = Moments(len(self._mean_F), len(self._mean_U))
        merged._count = self._count + other._count
        share = other._count / max(merged._count, 1)
        weight = self._count * share
        apart_F, apart_U = other._mean_F - self._mean_F, other._mean_U - self._mean_U
        merged._mean_F, merged._mean_U = self._mean_F + share * apart_F, self._mean_U + share * apart_U
        merged._squares_F = self._squares_F + other._squares_F + weight * apart_F**2
        merged._squares_U = self._squares_U + other._squares_U + weight * apart_U**2
        merged._products_FU = self._products_FU + other._products_FU + weight * np.outer(apart_F, apart_U)
        return merged

    def means(self) -> np.ndarray:
        """The features' means, [F]."""
        return self._mean_F

    def varies(self) -> np.ndarray:
        """Which features are not the same everywhere, [F] bool."""
        return self._deviations(self._squares_F) > _RESOLUTION

    def correlations(self) -> np.ndarray:
        """Pearson's r, [F, U]; 0 where one of the two does not vary."""
        deviations_FU = np.outer(self._deviations(self._squares_F), self._deviations(self._squares_U))
        vary_FU = np.outer(self.varies(), self._deviations(self._squares_U) > _RESOLUTION)
        scale_FU = np.where(vary_FU, deviations_FU * max(self._count, 1), 1.0)
        return np.clip(np.where(vary_FU, self._products_FU / scale_FU, 0.0), -1.0, 1.0)

    def _deviations(self, squares: np.ndarray) -> np.ndarray:
        return np.sqrt(squares / max(self._count, 1))
