"""Next-character cross-entropy, in nats."""

import jax.numpy as jnp
import optax

from charjax.types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log p(label) of every position, by `optax.softmax_cross_entropy_with_integer_labels`.

    Args:
        logits: [..., V] float32, unnormalised log-probabilities.
        labels: [...] integer ids in [0, V).

    Returns:
        [...] float32, nats per character; exp of its mean is the perplexity.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
