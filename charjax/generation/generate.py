"""Sampling: the context is read in one pass; then a jitted loop generates what follows, carrying the hidden state.

The loop is the `write` method of the decoder that `make_decoder` chooses: `NativeDecoder.write` or `XlaDecoder.write`.
"""

import functools
from collections.abc import Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.config import OnUnknown, SampleConfig
from charjax.data.vocab import Vocab, encode_context, encode_stop
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError
from charjax.generation.blocks import BLOCK, capacity_for
from charjax.generation.decoder import Decoder, make_decoder
from charjax.generation.inputs import check_vocab, checked_ids, checked_params
from charjax.generation.sampling import Sampling, Settings, as_threefry, is_filtered, make_settings
from charjax.host.jax_modes import in_default_modes
from charjax.memory_budget import check_room_to_sample
from charjax.model import CharLSTM, checked_key


@in_default_modes
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
    """Samples a continuation of each row of `context`; new lengths or settings do not trigger recompilation.

    Args:
        model: the model.
        params: its parameters.
        context: [B, P] integer, the ids to continue; if P = 0, the first character is sampled from the prediction of
            a zero state, i.e. the head's bias.
        key: a single PRNG key, from which row i derives `fold_in(key, i)`, whatever B is; or [B] keys, one per row.
        length: the number of characters to sample per row, at least 0.
        temperature: divides the logits; 0 selects the most likely character (argmax). A single value for all rows, or
            one per row.
        top_k: sample only from the k most likely characters (Fan et al. 2018).
        top_p: after top_k, sample only from the most likely characters that together reach this probability (nucleus
            sampling, Holtzman et al. 2020).
        min_p: after top_p, sample only from characters with at least this fraction of the highest probability (Nguyen
            et al. 2024).
        context_lengths: [B] integer, how many ids of each row to read, from its start; all by default.
        weights: the weight format: "auto" (that of the model), "float32", "bfloat16", or "int8" (CPU only; the fastest,
            with weights rounded to eight bits).

    Returns:
        ids [B, length] int32, without the context. With the native kernel on a CPU, a row is bitwise independent of the
        rest of the batch; elsewhere, matmuls of different sizes may round differently.

    Raises:
        UserError: a setting is out of range; params do not match the model; ids are not in [0, V); or context_lengths,
            temperatures or keys do not match the rows.
        NotImplementedError: the weights are int8, but the native kernel is not available.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, generate, init_params
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> context = vocab.encode("coff")[None]
        >>> generate(model, params, context, key=jax.random.key(1), length=6).shape
        (1, 6)
    """
    params, ids_BP = checked_params(model, params), checked_ids(context, model.vocab_size, "[B, P]", "context")
    batch, size = ids_BP.shape
    config, settings = _settings(
        batch, temperature, length=length, top_k=top_k, top_p=top_p, min_p=min_p, weights=weights
    )
    keys = _keys_of_rows(key, batch)
    if context_lengths is not None:
        context_lengths = np.asarray(context_lengths)
        are_whole = context_lengths.shape == (batch,) and np.issubdtype(context_lengths.dtype, np.integer)
        if not are_whole or (context_lengths < 0).any() or (context_lengths > size).any():
            raise UserError(f"context_lengths must be {batch} integers from 0 to {size}, one per row of the context")
    decoder = make_decoder(model, weights)
    ids = _generate(
        decoder,
        on_one_device(params),
        *decoder.pad_context(ids_BP, context_lengths),
        keys,
        settings,
        np.int32(length),
        capacity=capacity_for(length),
        filtered=is_filtered(config),
    )
    return ids[:, :length]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "filtered"))
def _generate(
    decoder: Decoder,
    params: Params,
    context: Array,
    context_lengths: Array | None,
    keys: Array,
    settings: Settings,
    length: Array,
    *,
    capacity: int,
    filtered: bool,
) -> Array:
    """Packs the weights, reads the contexts and samples -> ids [B, capacity], of which the first `length` are valid."""
    weights = decoder.pack(params)
    state = decoder.prefill(weights, decoder.init(len(keys)), context, context_lengths)
    sampling = Sampling(as_threefry(keys), jnp.zeros((), jnp.int32), settings)
    return decoder.write(weights, state, sampling, length, capacity=capacity, filtered=filtered)[1]


@in_default_modes
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
    on_unknown: OnUnknown = "error",
) -> list[str]:
    r"""Samples continuations of one or more contexts in parallel.

    Args:
        model: the model.
        params: its parameters.
        vocab: its vocabulary.
        context: the text to continue, or a list of strings; an empty string is replaced with a line break, provided the
            vocabulary contains it.
        seed: a seed, such that sample i of a context depends only on the seed and i; or a list of seeds, each of which
            gives the same continuation as in a separate call.
        length: the number of characters per continuation, not counting the context.
        num_samples: the number of continuations of a single context and seed.
        temperature: see `generate`; a single value for all continuations, or a list.
        top_k: see `generate`.
        top_p: see `generate`.
        min_p: see `generate`.
        stop: a continuation ends right after the first occurrence of this string.
        weights: see `generate`.
        on_unknown: how to handle context characters that are not in the vocabulary, as in `Vocab.encode`.

    Returns:
        The continuations, without the context: one per list entry (lists must have the same length), or `num_samples`
        if no argument is a list.

    Raises:
        UserError: the vocabulary does not match the model, a context contains characters not in it, a number is out of
            range, lists differ in length, or there is not enough memory.
        NotImplementedError: the weights are int8, but the native kernel is not available.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, generate_text, init_params
        >>> vocab = Vocab.from_text("coffee\n")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> [len(text) for text in generate_text(model, params, vocab, "coff", length=6, num_samples=2)]
        [6, 6]
    """
    check_vocab(model, vocab)
    num_samples = SampleConfig(num_samples=num_samples, length=length).num_samples
    count = _number_of_texts({"context": context, "seed": seed, "temperature": temperature}, num_samples)
    stop_ids = None if stop is None else encode_stop(vocab, stop)
    # Encode a shared context only once: we have not yet checked that `count` copies fit in memory.
    texts: Any = context if _is_list(context) else [context]
    contexts = [encode_context(vocab, text, on_unknown) for text in texts]
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


def _number_of_texts(settings: dict[str, Any], num_samples: int) -> int:
    """Returns the common length of the lists among `settings`, or num_samples if there are no lists.

    Raises:
        UserError: a list is empty, or lengths differ.
    """
    sizes = {name: len(value) for name, value in settings.items() if _is_list(value)}
    for name, size in sizes.items():
        if not size:
            raise UserError(f"{name} must not be an empty list")
    count = next(iter(sizes.values()), num_samples)
    if set(sizes.values()) | {count} != {count} or (sizes and num_samples not in (1, count)):
        sizes |= {"num_samples": num_samples} if num_samples > 1 else {}
        raise UserError(
            f"lists must have the same length, not {', '.join(f'{n}: {size}' for n, size in sizes.items())}"
        )
    return count


def _is_list(value: object) -> bool:
    return isinstance(value, Sized) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def end_of(stop: np.ndarray, ids: np.ndarray) -> int | None:
    """Returns the index in ids [n] just past the first `stop` [m], or None if it does not occur."""
    if len(ids) < len(stop):
        return None
    found = (np.lib.stride_tricks.sliding_window_view(ids, len(stop)) == stop).all(axis=1)
    return int(found.argmax()) + len(stop) if found.any() else None


def keys_of_seeds(seed: int | Sequence[int], count: int) -> Array:
    """Returns the keys [B] of B samples that share a seed or have one seed each."""
    seeds = np.broadcast_to(seed, count) if np.ndim(seed) == 0 else np.asarray(seed)
    each: list[Any] = np.unique(seeds).tolist() if seeds.ndim == 1 else [seed]
    for one in each:
        SampleConfig(seed=one)
    numbers = np.arange(count) if np.ndim(seed) == 0 else np.zeros(count, int)
    return _keys(seeds.astype(np.uint32), numbers)


def _settings(batch: int, temperature: float | Sequence[float], **others: object) -> tuple[SampleConfig, Settings]:
    """Checks the settings, including the temperature of each row, and returns (config, settings as arrays)."""
    temperatures = np.asarray(temperature)
    if temperatures.ndim and temperatures.shape != (batch,):
        raise UserError(f"temperature must be one number or {batch} numbers, one per sample, not {len(temperatures)}")
    one = temperature if not temperatures.ndim else 1.0
    config = SampleConfig(temperature=one, **others)  # type: ignore[arg-type]
    for each in set(temperatures.tolist()) if temperatures.ndim else ():
        SampleConfig(temperature=each)
    return config, make_settings(config, batch, temperatures if temperatures.ndim else None)


def _keys_of_rows(key: Array, batch: int) -> Array:
    key = checked_key(key)
    if key.ndim == 0:
        return _fold_each(jnp.broadcast_to(key, batch), jnp.arange(batch))
    if key.shape != (batch,):
        raise UserError(
            f"key must be one PRNG key or {batch} keys, one per row of the context, but has shape {key.shape}"
        )
    return key


@jax.jit
def _fold_each(keys: Array, numbers: Array) -> Array:
    return jax.vmap(jax.random.fold_in)(keys, numbers)


@jax.jit
def _keys(seeds: Array, numbers: Array) -> Array:
    return _fold_each(jax.vmap(jax.random.key)(seeds), numbers)
