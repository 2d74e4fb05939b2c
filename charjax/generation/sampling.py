"""How a character is chosen from its logits: temperature, then top-k, top-p and min-p."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array
from charjax.config import SampleConfig

_ALL = 2**31 - 1


class Choice(NamedTuple):
    """How the characters of B texts are chosen; arrays, so that another value does not compile anew.

    Attributes:
        temperature: [B] float32, 0 for argmax.
        top_k: [B] int32, V or more for all.
        top_p: [B] float32, infinite for all.
        min_p: [B] float32, 0 for all.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


def make_choice(config: SampleConfig, batch: int, temperature: jax.typing.ArrayLike | None = None) -> Choice:
    """The sampling settings for B texts, whose temperatures [B] may differ."""
    # Sums of probabilities are rounded: 1 itself would drop characters at the far end.
    top_p = np.inf if config.top_p in (None, 1.0) else config.top_p
    values = {
        "temperature": np.float32(config.temperature) if temperature is None else np.asarray(temperature, np.float32),
        "top_k": np.int32(_ALL if config.top_k is None else min(config.top_k, _ALL)),
        "top_p": np.float32(top_p),
        "min_p": np.float32(config.min_p or 0),
    }
    return Choice(**{name: np.broadcast_to(value, batch) for name, value in values.items()})  # type: ignore[arg-type]


def is_filtered(config: SampleConfig) -> bool:
    """Whether characters are ruled out before drawing, which needs them sorted."""
    return config.top_k is not None or config.top_p is not None or bool(config.min_p)


def choose(noise: Array, logits: Array, choice: Choice, filtered: bool) -> Array:
    """Chooses one character from logits [V]: temperature first, then top-k, top-p and min-p; -> [] int32.

    The largest of logits / temperature + Gumbel noise is a draw from their softmax (Gumbel 1954); so is the largest of
    logits + temperature * noise, which no small temperature can overflow, and which for 0 is the likeliest. The noise
    belongs to the characters: whatever is ruled out, the rest are drawn as they would have been.

    Args:
        noise: [V] float32, drawn from the standard Gumbel distribution.
        logits: [V] float32.
        choice: the settings, [] each.
        filtered: False leaves top-k, top-p and min-p out, and with them the sorting.
    """
    scores = logits + choice.temperature * noise
    if not filtered:
        return jnp.argmax(scores).astype(jnp.int32)
    ranked, order = jax.lax.top_k(logits, logits.shape[0])
    kept = jnp.arange(ranked.shape[0]) < choice.top_k
    # Less their maximum, logits cannot overflow when a small temperature divides them.
    scaled = (ranked - ranked[0]) / jnp.maximum(choice.temperature, jnp.finfo(jnp.float32).tiny)
    probs = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf))
    # A character stays while those before it do not yet hold top_p, so the likeliest one always does.
    kept &= jnp.cumsum(probs) - probs < choice.top_p
    kept &= probs >= choice.min_p * probs[0]
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    return jnp.argmax(jnp.where(kept[rank], scores, -jnp.inf)).astype(jnp.int32)


def draw_noise(keys: Array, positions: Array, vocab_size: int) -> Array:
    """Gumbel noise [T, B, V] float32 for the characters at `positions` [T] of texts with the given keys [B].

    charjax/ops/lstm/native/noise.h draws the same, as JAX does by default (jax_threefry_partitionable).
    """
    draw = lambda position, key: jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,))  # noqa: E731
    return jax.vmap(jax.vmap(draw, in_axes=(None, 0)), in_axes=(0, None))(positions, keys)
