"""Sampling characters from logits: temperature first, then top-k, top-p and min-p."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array
from charjax.config import SampleConfig

_NO_LIMIT = 2**31 - 1


class Settings(NamedTuple):
    """Temperature and filters for B sequences, as arrays so that new values do not trigger recompilation.

    Attributes:
        temperature: [B] float32, 0 for argmax.
        top_k: [B] int32, V or more for no limit.
        top_p: [B] float32, infinite for no limit.
        min_p: [B] float32, 0 for no limit.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


class Sampling(NamedTuple):
    """The keys and settings that B sequences are sampled with.

    Attributes:
        keys: [B] Threefry keys, one per sequence.
        position: [] integer, the number of characters sampled with these keys so far; folded into the keys.
        settings: temperature and filters.
    """

    keys: Array
    position: Array | np.int32
    settings: Settings


def make_settings(config: SampleConfig, batch: int, temperature: jax.typing.ArrayLike | None = None) -> Settings:
    """Returns the settings for B sequences; `temperature` [B], if given, overrides that of the config."""
    # Because cumulative probabilities are rounded, a limit of exactly 1 could drop the least likely characters.
    top_p = np.inf if config.top_p in (None, 1.0) else config.top_p
    values = {
        "temperature": np.float32(config.temperature) if temperature is None else np.asarray(temperature, np.float32),
        "top_k": np.int32(_NO_LIMIT if config.top_k is None else min(config.top_k, _NO_LIMIT)),
        "top_p": np.float32(top_p),
        "min_p": np.float32(config.min_p or 0),
    }
    return Settings(**{name: np.broadcast_to(value, batch) for name, value in values.items()})  # type: ignore[arg-type]


def is_filtered(config: SampleConfig) -> bool:
    """Returns whether some characters are excluded before sampling, which requires a sort."""
    return config.top_k is not None or config.top_p is not None or bool(config.min_p)


def sample(noise: Array, logits: Array, settings: Settings, filtered: bool) -> Array:
    """Samples one character, [] int32, from logits [V]: temperature first, then top-k, top-p and min-p.

    The argmax of logits / temperature + Gumbel noise is a sample from the softmax of logits / temperature (Gumbel
    1954). So is the argmax of logits + temperature * noise, which cannot overflow at low temperatures and gives the
    most likely character at 0. Each character has its own noise, so excluding some does not affect the ranking of the
    others.

    Args:
        noise: [V] float32, standard Gumbel noise.
        logits: [V] float32.
        settings: the settings, [] each.
        filtered: False skips top-k, top-p and min-p, along with the sort they need.
    """
    scores = logits + settings.temperature * noise
    if not filtered:
        return jnp.argmax(scores).astype(jnp.int32)
    ranked, order = jax.lax.top_k(logits, logits.shape[0])
    kept = jnp.arange(ranked.shape[0]) < settings.top_k
    # Since the maximum is subtracted first, dividing by a small temperature cannot overflow.
    scaled = (ranked - ranked[0]) / jnp.maximum(settings.temperature, jnp.finfo(jnp.float32).tiny)
    probs = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf))
    # A character is kept if those ranked above it total less than top_p, so the most likely one is always kept.
    kept &= jnp.cumsum(probs) - probs < settings.top_p
    kept &= probs >= settings.min_p * probs[0]
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    return jnp.argmax(jnp.where(kept[rank], scores, -jnp.inf)).astype(jnp.int32)


def gumbel_noise(keys: Array, positions: Array, vocab_size: int) -> Array:
    """Returns Gumbel noise [T, B, V] float32 for the characters at `positions` [T] of sequences with `keys` [B].

    The native kernel (charjax/ops/lstm/native) reproduces this noise; both assume jax_threefry_partitionable, JAX's
    default.
    """
    noise = lambda position, key: jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,))  # noqa: E731
    return jax.vmap(jax.vmap(noise, in_axes=(None, 0)), in_axes=(0, None))(positions, keys)


def as_threefry(keys: Array) -> Array:
    """Returns Threefry keys [B]: `keys` themselves or, if they are of another kind, keys derived from them."""
    if jax.random.key_impl(keys) == "threefry2x32":
        return keys
    bits = jax.vmap(functools.partial(jax.random.bits, shape=(2,), dtype=jnp.uint32))(keys)
    return jax.random.wrap_key_data(bits, impl="threefry2x32")
