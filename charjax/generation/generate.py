"""Sampling: one pass over the context, then one jitted loop over the characters to come, carrying the hidden state."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab, encode_context, encode_stop
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError
from charjax.generation.decode import BLOCK, arrange, capacity_for, decode, init_state, kernel_for, read, with_room
from charjax.generation.sampling import Choice, is_filtered, make_choice
from charjax.memory_budget import check_room_to_sample
from charjax.model import CharLSTM


def generate(
    model: CharLSTM,
    params: Params,
    context: jax.typing.ArrayLike,
    *,
    key: Array,
    length: int,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    context_lengths: jax.typing.ArrayLike | None = None,
    weights: str = "auto",
) -> Array:
    """Continues each row of `context`, by one compiled program that serves any length and settings.

    Args:
        model: the model.
        params: its parameters.
        context: [B, P] integer, the characters to go on from; with P = 0 the first character is drawn from what
            the model says of an empty state, the head's bias.
        key: PRNG key; row i draws from `fold_in(key, i)` alone, whatever B is. Or [B] keys, for each row its own.
        length: characters to generate per row, at least 0.
        temperature: divides the logits before anything else; 0 takes the likeliest character (argmax). One for all
            rows, or one for each.
        top_k: draw among the k likeliest characters alone (Fan et al. 2018).
        top_p: draw among the fewest likeliest characters that together hold this probability (nucleus sampling,
            Holtzman et al. 2020), after top_k.
        min_p: draw among the characters that have at least this fraction of the likeliest one's probability (Nguyen et
            al. 2024), after top_p.
        context_lengths: [B] integer, how many characters of each row of `context` count, from its beginning; by default
            all.
        weights: format of the weights: "auto" for the model's, "float32", "bfloat16", or "int8", which is fastest for
            processors and rounds to eight bits (benchmarks/NOTES.md says what that costs).

    Returns:
        ids [B, length] int32, the new characters. With the compiled kernel for processors a row is the same, to the
        bit, whatever stands beside it; elsewhere products of other sizes may be rounded otherwise.

    Raises:
        UserError: a setting out of range, lengths, temperatures or keys that are not one for each row.
        NotImplementedError: int8 where it cannot be had.
    """
    batch, size = np.shape(context)
    config, choice = _settings(
        batch, temperature, length=length, top_k=top_k, top_p=top_p, min_p=min_p, weights=weights
    )
    keys = _keys_of_rows(key, batch)
    if context_lengths is not None:
        lengths = np.asarray(context_lengths)
        if lengths.shape != (batch,) or (lengths < 0).any() or (lengths > size).any():
            raise UserError(
                f"context_lengths must be {batch} numbers from 0 to {size}, one for each row of the context"
            )
    if kernel_for(model) is not None:
        # By the kernel, what is beyond a length costs nothing: so no length of the context compiles anew.
        context_lengths = np.int32(size) if context_lengths is None else context_lengths
        context = with_room(context)
    ids = _generate(
        model,
        on_one_device(params),
        context,
        context_lengths,
        keys,
        choice,
        np.int32(length),
        capacity=capacity_for(length),
        filtered=is_filtered(config),
        weights=weights,
    )
    return ids[:, :length]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "filtered", "weights"))
def _generate(
    model: CharLSTM,
    params: Params,
    context: Array,
    context_lengths: Array | None,
    keys: Array,
    choice: Choice,
    length: Array,
    *,
    capacity: int,
    filtered: bool,
    weights: str,
) -> Array:
    """Arranges the weights, reads the contexts and writes: -> ids [B, capacity], of which `length` count."""
    arranged = arrange(model, params, weights)
    state = read(model, params, arranged, init_state(model, keys), context, context_lengths)
    return decode(model, arranged, state, choice, length, capacity=capacity, filtered=filtered)[1]


def generate_text(
    model: CharLSTM,
    params: Params,
    vocab: Vocab,
    context: str | Sequence[str] = "",
    *,
    seed: int | Sequence[int] = 0,
    length: int = 500,
    num_samples: int = 1,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
    weights: str = "auto",
) -> list[str]:
    """Continues a text several times side by side, or several texts.

    Args:
        model: the model.
        params: its parameters.
        vocab: its characters.
        context: what to go on from, or a list of such; an empty one starts as if after a line break, where the
            vocabulary has one.
        seed: of the draws; sample i of a context depends on the seed and i alone. Or a list of seeds, each of which
            draws what it would draw alone.
        length: characters per text, context not counted.
        num_samples: number of texts for a single context and seed.
        temperature: see `generate`; one for all texts, or a list.
        top_k: see `generate`.
        top_p: see `generate`.
        min_p: see `generate`.
        stop: ends a text right after its first occurrence.
        weights: see `generate`.

    Returns:
        The continuations, without the context. There are as many as the lists have entries, which must agree; without
        a list, `num_samples`.

    Raises:
        UserError: characters of a context that the vocabulary lacks, a number out of range, lists that do not agree,
            or too little memory.
        NotImplementedError: int8 where it cannot be had.
    """
    lists = {"context": context, "seed": seed, "temperature": temperature}
    sizes = {name: len(value) for name, value in lists.items() if not isinstance(value, str | int | float)}
    count = next(iter(sizes.values()), num_samples)
    if set(sizes.values()) | {count} != {count} or (sizes and num_samples not in (1, count)):
        sizes |= {"num_samples": num_samples} if num_samples > 1 else {}
        raise UserError(f"lists must be equally long, not {', '.join(f'{n} {size}' for n, size in sizes.items())}")
    SampleConfig(num_samples=count)
    stop_ids = None if stop is None else encode_stop(vocab, stop)
    # One context for many texts is encoded once: there may be more texts asked for than memory could ever hold.
    contexts = [encode_context(vocab, one) for one in ([context] if isinstance(context, str) else context)]
    longest = max(map(len, contexts))
    check_room_to_sample(
        model.config, model.vocab_size, num_samples=count, length=length, context_length=longest, block=BLOCK
    )
    rows = np.stack([np.pad(one, (0, longest - len(one))) for one in contexts])
    lengths = np.broadcast_to(np.array([len(one) for one in contexts], np.int32), count)
    ids = generate(
        model,
        params,
        np.broadcast_to(rows, (count, longest)),
        key=keys_of_seeds(seed, count),
        length=length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        context_lengths=None if (lengths == longest).all() else lengths,
        weights=weights,
    )
    return [vocab.decode(row if stop_ids is None else row[: end_of(stop_ids, row)]) for row in np.asarray(ids)]


def end_of(stop: np.ndarray, ids: np.ndarray) -> int | None:
    """How many of the ids [n] there are up to the end of the first `stop` [m] among them; None where it is not."""
    if len(ids) < len(stop):
        return None
    found = (np.lib.stride_tricks.sliding_window_view(ids, len(stop)) == stop).all(axis=1)
    return int(found.argmax()) + len(stop) if found.any() else None


def _settings(batch: int, temperature: float | Sequence[float], **others: object) -> tuple[SampleConfig, Choice]:
    """Checks the settings, the temperature of each text among them."""
    temperatures = np.asarray(temperature)
    if temperatures.ndim and temperatures.shape != (batch,):
        raise UserError(f"temperature must be one number, or {batch}, one for each text, not {len(temperatures)}")
    one = temperature if not temperatures.ndim else 1.0
    config = SampleConfig(temperature=one, **others)  # type: ignore[arg-type]
    for each in np.unique(temperatures) if temperatures.ndim else ():
        SampleConfig(temperature=float(each))
    return config, make_choice(config, batch, temperatures if temperatures.ndim else None)


def _keys_of_rows(key: Array, batch: int) -> Array:
    if key.ndim == 0:
        return _fold_each(jnp.broadcast_to(key, batch), jnp.arange(batch))
    if key.shape != (batch,):
        raise UserError(f"key must be one PRNG key, or {batch}, one for each row of the context, not {key.shape}")
    return key


def keys_of_seeds(seed: int | Sequence[int], count: int) -> Array:
    """Keys [B] of B texts: of one seed, or each of its own."""
    seeds = np.broadcast_to(seed, count) if np.ndim(seed) == 0 else np.asarray(seed)
    for one in np.unique(seeds).tolist():
        SampleConfig(seed=one)
    numbers = np.arange(count) if np.ndim(seed) == 0 else np.zeros(count, int)
    return _keys(seeds.astype(np.uint32), numbers)


@jax.jit
def _fold_each(keys: Array, numbers: Array) -> Array:
    return jax.vmap(jax.random.fold_in)(keys, numbers)


@jax.jit
def _keys(seeds: Array, numbers: Array) -> Array:
    return _fold_each(jax.vmap(jax.random.key)(seeds), numbers)
