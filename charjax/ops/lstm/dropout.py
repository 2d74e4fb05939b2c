"""Dropout on layer outputs. Masks are sampled up front, because some implementations apply them inside their loop."""

import jax
import jax.numpy as jnp

from charjax.array_types import Array


def keep_per_sequence(key: Array, rate: float | Array, sequence_ids: Array, shape: tuple[int, ...]) -> Array:
    """Samples a dropout mask with one key per sequence, so that a row does not depend on the rest of the batch.

    Args:
        key: the PRNG key.
        rate: the probability of False.
        sequence_ids: [B] integers to fold into `key`.
        shape: the shape of a row.

    Returns:
        [B, *shape] bool.
    """
    mask = lambda number: jax.random.bernoulli(jax.random.fold_in(key, number), _kept(rate), shape)  # noqa: E731
    return jax.vmap(mask)(sequence_ids)


def drop(x: Array, keep: Array, rate: float | Array) -> Array:
    """Applies inverted dropout (Srivastava et al. 2014): x / (1 - rate) where `keep` is True, 0 elsewhere."""
    return jnp.where(keep, x / _kept(rate).astype(x.dtype), 0)


def _kept(rate: float | Array) -> Array:
    """Returns 1 - rate, in float32 even for a Python number, so that a traced rate gives the same masks."""
    return 1 - jnp.float32(rate)
