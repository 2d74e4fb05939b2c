"""The LSTM in flax: `flax.linen.scan` of `LSTMCell` over time.

Tests compare it, like all other implementations, with float64 NumPy.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import cell, input_product, matmul_in

Initializer = Callable[..., Array]


class LSTMCell(nn.Module):
    """Takes one step of an LSTM layer and owns the layer's parameters.

    Parameters (float32): `w_ih` [D, 4H], `w_hh` [H, 4H] (initialized to be orthogonal per gate) and `bias` [4H]
    (initialized to 1 for the forget gate, otherwise 0; Jozefowicz et al. 2015), with gates in the order i, f, g, o.

    Attributes:
        hidden_dim: H.
        input_dim: D, the number of input features, or of rows that integer inputs select from.
        dtype: the matmul operand format.
        w_ih_init: the initializer for `w_ih`.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from charjax import LSTMCarry, LSTMCell
        >>> cell = LSTMCell(hidden_dim=8, input_dim=5)
        >>> carry = LSTMCarry(c=jnp.zeros((2, 8)), h=jnp.zeros((2, 8)))
        >>> (carry, h), variables = cell.init_with_output(jax.random.key(0), carry, jnp.ones((2, 5)))
        >>> h.shape, variables["params"]["w_hh"].shape
        ((2, 8), (8, 32))
    """

    hidden_dim: int
    input_dim: int
    dtype: str = "float32"
    w_ih_init: Initializer = nn.initializers.lecun_normal()

    def setup(self) -> None:
        """Declares the parameters."""
        gates = 4 * self.hidden_dim
        self.w_ih = self.param("w_ih", self.w_ih_init, (self.input_dim, gates))
        self.w_hh = self.param("w_hh", per_gate(nn.initializers.orthogonal()), (self.hidden_dim, gates))
        self.bias = self.param("bias", forget_gate_one, (gates,))

    @property
    def weights(self) -> LSTMWeights:
        """The parameters, for implementations that have their own loop over time."""
        return LSTMWeights(self.w_ih, self.w_hh, self.bias)

    def __call__(self, carry: LSTMCarry, x: Array) -> tuple[LSTMCarry, Array]:
        """Takes one step: x [B, D] float or [B] integer -> (carry, h [B, H] in `dtype`)."""
        dtype = jnp.dtype(self.dtype)
        z_BG = input_product(x, self.w_ih, dtype) + matmul_in(carry.h, self.w_hh, dtype) + self.bias[None]
        c_BH, h_BH = cell(z_BG, carry.c)
        return LSTMCarry(c_BH, h_BH), h_BH.astype(dtype)


def per_gate(initializer: Initializer) -> Initializer:
    """Turns an [H, H] initializer into an [H, 4H] initializer that samples each gate separately."""

    def init(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
        rows, gates = shape
        keys = jax.random.split(key, 4)
        # vmap is not used, because JAX's batched QR on a CPU can deadlock waiting for threads that are taken by the QRs
        # of other devices.
        return jnp.concatenate([initializer(k, (rows, gates // 4), dtype) for k in keys], axis=1)

    return init


def forget_gate_one(key: Array, shape: tuple[int], dtype: jnp.dtype = jnp.float32) -> Array:
    """Returns a bias of 1 for the forget gate and 0 elsewhere, so that an untrained cell tends to remember."""
    del key
    hidden = shape[0] // 4
    return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1)


def lstm_flax(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` with `flax.linen.scan`."""
    scanned = nn.scan(LSTMCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    # parent=None keeps the cell from becoming a submodule of the caller, which already owns the parameters.
    layer = scanned(weights.w_hh.shape[0], weights.w_ih.shape[0], dtype.name, parent=None)
    carry, y_BTH = layer.apply({"params": weights._asdict()}, carry, x)
    return y_BTH, carry
