"""The reference: `flax.linen.scan` of `LSTMCell` over time. Every other implementation is held to its numbers."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.gates import input_product, product

Initializer = Callable[..., Array]


class LSTMCell(nn.Module):
    """One step of an LSTM layer, and the owner of its parameters.

    Parameters (float32): `w_ih` [D, 4H], `w_hh` [H, 4H] (orthogonal per gate), `bias` [4H] (zero, but 1 for the
    forget gate: Jozefowicz et al. 2015), gates in the order i, f, g, o.

    Attributes:
        hidden_dim: H.
        input_dim: D, the number of input features, or of rows that integer inputs choose from.
        dtype: format of the products' operands.
        w_ih_init: initializer of `w_ih`.
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
        """The parameters, for implementations that run the whole sequence themselves."""
        return LSTMWeights(self.w_ih, self.w_hh, self.bias)

    def __call__(self, carry: LSTMCarry, x: Array) -> tuple[LSTMCarry, Array]:
        """Takes one step: x [B, D] float or [B] integer -> (carry, h [B, H] in `dtype`)."""
        dtype = jnp.dtype(self.dtype)
        z_BG = input_product(x, self.w_ih, dtype) + product(carry.h, self.w_hh, dtype) + self.bias[None]
        i_BH, f_BH, g_BH, o_BH = jnp.split(z_BG, 4, axis=-1)
        c_BH = jax.nn.sigmoid(f_BH) * carry.c + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
        h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(c_BH)
        return LSTMCarry(c_BH, h_BH), h_BH.astype(dtype)


def per_gate(initializer: Initializer) -> Initializer:
    """Turns an initializer of [H, H] into one of [H, 4H], drawn apart for each gate."""

    def init(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
        rows, gates = shape
        keys = jax.random.split(key, 4)
        return jnp.concatenate([initializer(k, (rows, gates // 4), dtype) for k in keys], axis=1)

    return init


def forget_gate_one(key: Array, shape: tuple[int], dtype: jnp.dtype = jnp.float32) -> Array:
    """A zero bias whose forget-gate quarter is 1, so that a fresh cell remembers."""
    del key
    hidden = shape[0] // 4
    return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1)


def lstm_flax(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """The reference implementation of `charjax.ops.lstm`."""
    scanned = nn.scan(LSTMCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    # parent=None: the cell borrows its parameters, so it must not join the module that calls this.
    cell = scanned(weights.w_hh.shape[0], weights.w_ih.shape[0], dtype.name, parent=None)
    carry, y_BTH = cell.apply({"params": weights._asdict()}, carry, x)
    return y_BTH, carry
