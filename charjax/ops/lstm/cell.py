"""The gates of an LSTM, as the implementations that XLA compiles share them; the references have their own."""

import jax
import jax.numpy as jnp

from charjax.types import Array


def activate(z: Array) -> tuple[Array, Array, Array, Array]:
    """Gates before their activations [..., 4H] -> i, f, g, o, [..., H] each."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def cell(z: Array, c: Array) -> tuple[Array, Array]:
    """One step: gates before their activations [..., 4H] and the c before [..., H] -> c and h after, [..., H]."""
    i, f, g, o = activate(z)
    c = f * c + i * g
    return c, o * jnp.tanh(c)
