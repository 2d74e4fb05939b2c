"""An LSTM layer in plain float64 NumPy, one step and one gate at a time: what every implementation must compute."""

from typing import Any, NamedTuple

import numpy as np


class Gradients(NamedTuple):
    """A scalar's gradients with respect to a layer's arguments; `x` is None for integer inputs."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    bias: np.ndarray
    x: np.ndarray | None
    c: np.ndarray
    h: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def lstm_float64(w_ih: Any, w_hh: Any, bias: Any, x: Any, c: Any, h: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps x [B, T, D] or integer [B, T] to (y [B, T, H], c [B, H], h [B, H]), float64."""
    w_ih, w_hh, bias, c, h = (np.asarray(a, np.float64) for a in (w_ih, w_hh, bias, c, h))
    x = _dense(x, w_ih.shape[0])
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w_ih + h @ w_hh + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    y = np.stack(outputs, axis=1) if outputs else np.zeros((x.shape[0], 0, h.shape[1]))
    return y, c, h


def lstm_gradients_float64(
    w_ih: Any, w_hh: Any, bias: Any, x: Any, c: Any, h: Any, *, dy: Any, dc: Any, dh: Any
) -> Gradients:
    """Returns the gradients for the cotangents dy [B, T, H], dc and dh [B, H] of the outputs of `lstm_float64`."""
    one_hot = np.issubdtype(np.asarray(x).dtype, np.integer)
    w_ih, w_hh, bias, c, h = (np.asarray(a, np.float64) for a in (w_ih, w_hh, bias, c, h))
    dc, dh = np.asarray(dc, np.float64), np.asarray(dh, np.float64)
    x = _dense(x, w_ih.shape[0])
    steps = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w_ih + h @ w_hh + bias, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        after = f * c + i * g
        steps.append((h, c, i, f, g, o, np.tanh(after)))
        c, h = after, o * np.tanh(after)
    dw_ih, dw_hh, dbias, dx = np.zeros_like(w_ih), np.zeros_like(w_hh), np.zeros_like(bias), np.zeros_like(x)
    for t, (h, c, i, f, g, o, tanh_c) in reversed(list(enumerate(steps))):
        dh = dh + np.asarray(dy[:, t], np.float64)
        dc = dc + dh * o * (1 - tanh_c**2)
        dz = np.concatenate(
            [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)], axis=-1
        )
        dw_ih += x[:, t].T @ dz
        dw_hh += h.T @ dz
        dbias += dz.sum(axis=0)
        dx[:, t] = dz @ w_ih.T
        dh, dc = dz @ w_hh.T, dc * f
    return Gradients(dw_ih, dw_hh, dbias, None if one_hot else dx, dc, dh)


def _dense(x: Any, size: int) -> np.ndarray:
    """Returns [B, T, D] float64; integers become one-hot rows."""
    x = np.asarray(x)
    return np.eye(size)[x] if np.issubdtype(x.dtype, np.integer) else x.astype(np.float64)
