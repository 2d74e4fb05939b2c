"""Types of arrays, shared by every floor."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
Params = Any  # flax's nested dict of arrays


class Ids(Protocol):
    """A text as ids, in memory (a NumPy array [N]) or in a file, of which a slice is read when it is asked for."""

    @property
    def dtype(self) -> np.dtype:
        """Integer type of the ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class LSTMCarry(NamedTuple):
    """Recurrent state of one LSTM layer: cell state `c` and hidden state `h`, each [B, H] float32."""

    c: Array
    h: Array


class LSTMWeights(NamedTuple):
    """Parameters of one LSTM layer, gates in the order i, f, g, o along the last axis (G = 4H), float32.

    Attributes:
        w_ih: [D, G] input weights; row d is what a one-hot input d adds to the gates.
        w_hh: [H, G] recurrent weights.
        bias: [G].
    """

    w_ih: Array
    w_hh: Array
    bias: Array
