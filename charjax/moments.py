"""Correlations of many pairs of series in one pass, in memory that does not grow with their length."""

import numpy as np

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
