"""Array types shared by all packages."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
Params = Any  # Flax's nested dict of arrays


class Ids(Protocol):
    """Text as ids, in a NumPy array [N] or in a file whose slices are read on demand."""

    @property
    def dtype(self) -> np.dtype:
        """Integer type of the ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class LSTMCarry(NamedTuple):
    """The recurrent state of one LSTM layer: cell state `c` and hidden state `h`, each [B, H] float32.

    Examples:
        >>> import jax.numpy as jnp
        >>> from charjax import LSTMCarry
        >>> carry = LSTMCarry(c=jnp.zeros((2, 8)), h=jnp.zeros((2, 8)))
        >>> carry.h.shape
        (2, 8)
    """

    c: Array
    h: Array


class LSTMWeights(NamedTuple):
    """The parameters of one LSTM layer, float32, gates in the order i, f, g, o along the last axis (G = 4H).

    Attributes:
        w_ih: [D, G] input weights; one-hot input d adds row d to the gates.
        w_hh: [H, G] recurrent weights.
        bias: [G] bias of the gates.

    Examples:
        >>> import jax.numpy as jnp
        >>> from charjax import LSTMCarry, LSTMWeights, ops
        >>> weights = LSTMWeights(w_ih=jnp.zeros((5, 32)), w_hh=jnp.zeros((8, 32)), bias=jnp.zeros(32))
        >>> carry = LSTMCarry(c=jnp.ones((2, 8)), h=jnp.zeros((2, 8)))
        >>> ids = jnp.zeros((2, 3), jnp.uint8)  # each stands for a one-hot row of 5 inputs
        >>> y, carry = ops.lstm(weights, ids, carry, implementation="scan")
        >>> y.shape, float(carry.c[0, 0])  # every gate is sigmoid(0), so a step halves c
        ((2, 3, 8), 0.125)
    """

    w_ih: Array
    w_hh: Array
    bias: Array


# Required by functions exported with `jax.export` that take or return these types.
for _type in (LSTMCarry, LSTMWeights):
    jax.export.register_namedtuple_serialization(_type, serialized_name=f"charjax.{_type.__name__}")
