"""The NumPy reference that tests and benchmarks share, and numerical gradients for small arrays."""

import numpy as np

from benchmarks.common.reference import lstm_float64, lstm_gradients_float64, sigmoid

__all__ = ["lstm_float64", "lstm_gradients_float64", "numerical_gradient", "sigmoid"]


def numerical_gradient(function, array, eps=1e-6):
    """Central differences of a scalar function of a float64 array."""
    array = np.array(array, np.float64)
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        keep = array[index]
        array[index] = keep + eps
        above = function(array)
        array[index] = keep - eps
        below = function(array)
        array[index] = keep
        gradient[index] = (above - below) / (2 * eps)
    return gradient
