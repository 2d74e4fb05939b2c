"""Dropout on the outputs of a layer, drawn before it is applied: some implementations apply it inside their loop."""

import jax
import jax.numpy as jnp

from charjax.array_types import Array


def keep_per_stream(key: Array, rate: float, stream_ids: Array, shape: tuple[int, ...]) -> Array:
    """A dropout mask of which each row is drawn by its own key, so that it does not depend on the rows beside it.

    Args:
        key: PRNG key.
        rate: probability of False.
        stream_ids: [B] integer that `key` is folded with.
        shape: of a row.

    Returns:
        [B, *shape] bool.
    """
    return jax.vmap(lambda stream: jax.random.bernoulli(jax.random.fold_in(key, stream), 1 - rate, shape))(stream_ids)


def drop(x: Array, keep: Array, rate: float) -> Array:
    """Inverted dropout (Srivastava et al. 2014): x where `keep` holds, scaled by 1 / (1 - rate), else 0."""
    return jnp.where(keep, x / (1 - rate), 0)
