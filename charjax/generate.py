"""Sampling: one pass over the context, then one jitted loop over the characters to come, carrying the hidden state."""

import codecs
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.capacity import check_room_to_sample
from charjax.config import SampleConfig
from charjax.errors import UserError
from charjax.model import Carry, CharLSTM, init_carry, step_weights
from charjax.ops.lstm import mosaic_sample
from charjax.ops.lstm.stepwise import StepState, StepWeights, first_layer, logits, start, step
from charjax.ops.lstm.target import target_platform
from charjax.types import Array
from charjax.vocab import Vocab, show_characters

Params = Any  # flax's nested dict of arrays

# Characters per trip of the generation loop, whose noise is drawn at once.
BLOCK = 16


class Choice(NamedTuple):
    """How a character is chosen from its logits; arrays, so that another value does not compile anew.

    Attributes:
        temperature: [] float32, 0 for argmax.
        top_k: [] int32, V or more for all.
        top_p: [] float32, infinite for all.
    """

    temperature: Array
    top_k: Array
    top_p: Array


class DecodeState(NamedTuple):
    """Where a batch of texts stands.

    Attributes:
        carry: recurrent state after the last character, [B, H] per layer.
        keys: [B] PRNG keys, one per text.
        position: [] int32, characters drawn so far; folded into the keys.
    """

    carry: Carry
    keys: Array
    position: Array


def generate(
    model: CharLSTM,
    params: Params,
    context: jax.typing.ArrayLike,
    *,
    key: Array,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """Continues each row of `context`.

    Args:
        model: the model.
        params: its parameters.
        context: [B, P] integer, the characters to go on from; with P = 0 the first character is drawn from what
            the model says of an empty state, the head's bias.
        key: PRNG key; row i draws from `fold_in(key, i)` alone, whatever B is.
        length: characters to generate per row, at least 0.
        temperature: divides the logits before anything else; 0 takes the likeliest character (argmax).
        top_k: draw among the k likeliest characters alone (Fan et al. 2018).
        top_p: draw among the fewest likeliest characters that together hold this probability (nucleus sampling,
            Holtzman et al. 2020), after top_k.

    Returns:
        ids [B, length] int32, the new characters.

    Raises:
        UserError: temperature, top_k, top_p or length out of range.
    """
    config = SampleConfig(length=length, temperature=temperature, top_k=top_k, top_p=top_p)
    state, weights = prefill(model, params, jnp.asarray(context), key), arrange(model, params)
    _, ids = decode(model, weights, state, make_choice(config), length=length, filtered=is_filtered(config))
    return ids


def generate_text(
    model: CharLSTM,
    params: Params,
    vocab: Vocab,
    context: str = "",
    *,
    seed: int = 0,
    length: int = 500,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[str]:
    """Continues a text, `num_samples` times side by side.

    Args:
        model: the model.
        params: its parameters.
        vocab: its characters.
        context: what to go on from; an empty one starts as if after a line break, where the vocabulary has one.
        seed: of the draws; text i depends on the seed and i alone.
        length: characters per text, context not counted.
        num_samples: number of texts.
        temperature: see `generate`.
        top_k: see `generate`.
        top_p: see `generate`.

    Returns:
        The continuations, without the context.

    Raises:
        UserError: characters of the context that the vocabulary lacks, a number out of range, or too little memory.
    """
    config = SampleConfig(
        length=length, temperature=temperature, top_k=top_k, top_p=top_p, num_samples=num_samples, seed=seed
    )
    context_P = encode_context(vocab, context)
    check_room_to_sample(
        model.config,
        model.vocab_size,
        num_samples=num_samples,
        length=length,
        context_length=len(context_P),
        block=BLOCK,
    )
    ids = generate(
        model,
        params,
        np.tile(context_P, (num_samples, 1)),
        key=jax.random.key(config.seed),
        length=length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    return [vocab.decode(row) for row in np.asarray(ids)]


def stream_ids(
    model: CharLSTM, params: Params, context: np.ndarray, config: SampleConfig, *, chunk: int = 32
) -> Iterator[np.ndarray]:
    """Yields what `generate` would return, [B, up to chunk] at a time, while the next chunk is being computed.

    Args:
        model: the model.
        params: its parameters.
        context: [B, P] integer.
        config: length, temperature, top_k, top_p and seed.
        chunk: characters per compiled call.
    """
    state = prefill(model, params, jnp.asarray(context), jax.random.key(config.seed))
    weights, choice = arrange(model, params), make_choice(config)
    pending: tuple[Array, int] | None = None
    for done in range(0, config.length, chunk):
        # The last chunk is computed whole and cut, so that one compilation serves every length.
        state, ids = decode(model, weights, state, choice, length=chunk, filtered=is_filtered(config))
        if pending is not None:
            yield np.asarray(pending[0])[:, : pending[1]]
        pending = (ids, min(chunk, config.length - done))
    if pending is not None:
        yield np.asarray(pending[0])[:, : pending[1]]


def stream_text(model: CharLSTM, params: Params, vocab: Vocab, context: str, config: SampleConfig) -> Iterator[str]:
    """Yields one continuation piece by piece: joined, they are what `generate_text` returns first.

    Args:
        model: the model.
        params: its parameters.
        vocab: its characters.
        context: what to go on from.
        config: length, temperature, top_k, top_p and seed.

    Raises:
        UserError: characters of the context that the vocabulary lacks.
    """
    # A character of several bytes may be cut by the end of a piece: the decoder holds its beginning back.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for (ids,) in stream_ids(model, params, encode_context(vocab, context)[None], config):
        yield decoder.decode(ids.astype(np.uint8).tobytes()) if vocab.kind == "bytes" else vocab.decode(ids)
    yield decoder.decode(b"", final=True)


def encode_context(vocab: Vocab, context: str) -> np.ndarray:
    """A context as ids [P]; an empty one becomes a line break where the vocabulary has one.

    Raises:
        UserError: characters that the vocabulary lacks, which the message names.
    """
    if not context and not vocab.unknown("\n"):
        context = "\n"
    unknown = vocab.unknown(context)
    if unknown:
        raise UserError(
            f"the context has characters that the {vocab.kind} vocabulary lacks: "
            f"{show_characters(unknown)}; leave them out"
        )
    return vocab.encode(context)


def make_choice(config: SampleConfig) -> Choice:
    """The sampling settings as arrays."""
    return Choice(
        jnp.float32(config.temperature),
        jnp.int32(2**31 - 1 if config.top_k is None else config.top_k),
        # Sums of probabilities are rounded: 1 itself would drop characters at the far end.
        jnp.float32(np.inf if config.top_p in (None, 1.0) else config.top_p),
    )


def is_filtered(config: SampleConfig) -> bool:
    """Whether characters are ruled out before drawing, which needs them sorted."""
    return config.top_k is not None or config.top_p is not None


@functools.partial(jax.jit, static_argnums=0)
def prefill(model: CharLSTM, params: Params, context: Array, key: Array) -> DecodeState:
    """Reads a context [B, P] in one pass."""
    batch, length = context.shape
    carry = init_carry(model, batch)
    if length:
        _, carry = model.apply({"params": params}, context, carry)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch))
    return DecodeState(carry, keys, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def arrange(model: CharLSTM, params: Params) -> StepWeights:
    """The parameters as `decode` takes them: joined and rounded once, whatever number of pieces a text comes in."""
    return step_weights(model, params)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("length", "filtered", "interpret"))
def decode(
    model: CharLSTM,
    weights: StepWeights,
    state: DecodeState,
    choice: Choice,
    *,
    length: int,
    filtered: bool,
    interpret: Any = None,
) -> tuple[DecodeState, Array]:
    """Draws `length` characters for each text, by weights from `arrange`: -> (state after them, ids [B, length] int32).

    Where the model's implementation is "mosaic_gpu", a kernel for GPUs chooses the characters, unless some are ruled
    out; `interpret` interprets it on any platform, for tests, see `mosaic_sample.choose`.
    """
    carry, batch = state.carry, len(state.keys)
    kernel = mosaic_sample.serves(model.implementation, interpret) and not filtered
    if kernel:
        weights, carry = mosaic_sample.pad_weights(weights), mosaic_sample.pad_carry(carry)

    def draw(steps: StepState, noise_BV: Array) -> tuple[StepState, Array]:
        choose_one = functools.partial(choose, choice=choice, filtered=filtered)
        ids_B = jax.vmap(choose_one)(noise_BV, logits(weights, steps))
        return step(weights, steps, first_layer(weights, steps, ids_B)), ids_B

    def draw_in_kernel(noise_TBV: Array, steps: StepState, number: Array) -> tuple[StepState, Array]:
        ids_B, first, operand = mosaic_sample.choose(weights, steps, noise_TBV, number, choice.temperature, interpret)
        return step(weights, steps, first, operand), ids_B

    # A GPU's host asks once per trip of a loop whether to go on; a processor has more to compile, and gains nothing.
    unroll = BLOCK if target_platform() != "cpu" else 1

    def block(steps: StepState, position: Array, size: int) -> tuple[StepState, Array]:
        noise_TBV = draw_noise(state.keys, position + jnp.arange(size), model.vocab_size)
        if kernel:
            draw_one = functools.partial(draw_in_kernel, mosaic_sample.pad_noise(noise_TBV))
            return jax.lax.scan(draw_one, steps, mosaic_sample.numbers(size), unroll=unroll)
        return jax.lax.scan(draw, steps, noise_TBV, unroll=unroll)

    blocks, left = divmod(length, BLOCK)
    starts = state.position + BLOCK * jnp.arange(blocks)
    steps = start(weights, carry, summands=mosaic_sample.summands(batch) if kernel else 1)
    steps, ids_NTB = jax.lax.scan(lambda steps, position: block(steps, position, BLOCK), steps, starts)
    steps, ids_TB = block(steps, state.position + BLOCK * blocks, left)
    ids = jnp.concatenate([ids_NTB.reshape(blocks * BLOCK, batch), ids_TB])
    carry = mosaic_sample.cut_carry(steps.carry, model.hidden_dim) if kernel else steps.carry
    return DecodeState(carry, state.keys, state.position + length), ids.T


def draw_noise(keys: Array, positions: Array, vocab_size: int) -> Array:
    """Gumbel noise [T, B, V] float32 for the characters at `positions` [T] of texts with the given keys [B]."""
    draw = lambda position, key: jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,))  # noqa: E731
    return jax.vmap(jax.vmap(draw, in_axes=(None, 0)), in_axes=(0, None))(positions, keys)


def choose(noise: Array, logits: Array, choice: Choice, filtered: bool) -> Array:
    """Chooses one character from logits [V]: temperature first, then top-k, then top-p; -> [] int32.

    The largest of logits / temperature + Gumbel noise is a draw from their softmax (Gumbel 1954); so is the largest of
    logits + temperature * noise, which no small temperature can overflow, and which for 0 is the likeliest.

    Args:
        noise: [V] float32, drawn from the standard Gumbel distribution.
        logits: [V] float32.
        choice: the settings.
        filtered: False leaves top-k and top-p out, and with them the sorting.
    """
    if not filtered:
        return jnp.argmax(logits + choice.temperature * noise).astype(jnp.int32)
    ranked, order = jax.lax.top_k(logits, logits.shape[0])
    kept = jnp.arange(ranked.shape[0]) < choice.top_k
    # Less their maximum, logits cannot overflow when a small temperature divides them.
    scaled = (ranked - ranked[0]) / jnp.maximum(choice.temperature, jnp.finfo(jnp.float32).tiny)
    probs = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf))
    # A character stays while those before it do not yet hold top_p, so the likeliest one always does.
    kept &= jnp.cumsum(probs) - probs < choice.top_p
    drawn = jnp.argmax(jnp.where(kept, ranked + choice.temperature * noise, -jnp.inf))
    return order[drawn].astype(jnp.int32)
