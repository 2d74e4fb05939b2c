"""An LSTM layer in plain NumPy, float64, one step and one gate at a time: the numbers that all others must give."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_float64(w_ih, w_hh, bias, x, c, h):
    """x [B, T, D] or [B, T] integer -> (y [B, T, H], c [B, H], h [B, H]), float64."""
    w_ih, w_hh, bias, c, h = (np.asarray(a, np.float64) for a in (w_ih, w_hh, bias, c, h))
    x = np.eye(w_ih.shape[0])[x] if np.issubdtype(x.dtype, np.integer) else np.asarray(x, np.float64)
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w_ih + h @ w_hh + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    y = np.stack(outputs, axis=1) if outputs else np.zeros((x.shape[0], 0, h.shape[1]))
    return y, c, h


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
