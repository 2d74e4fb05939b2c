"""Reading and writing with a model, step by step, carrying the hidden state: what generation is made of.

On processors, where there is the compiled kernel, it takes the steps (`charjax.ops.lstm.native.steps`); everywhere else
XLA's program of `charjax.ops.lstm.single_step` does. Both read the same parameters and draw the same noise.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.config import SampleConfig
from charjax.generation.sampling import Choice, choose, draw_noise, make_choice
from charjax.model import Carry, CharLSTM, init_carry, layer_weights, step_weights
from charjax.ops.lstm.experimental.mosaic_gpu import sample_step as mosaic_sample
from charjax.ops.lstm.native import Library
from charjax.ops.lstm.native.steps import DRAW, RESET, REST, PackedWeights, library_for_steps, pack, take_steps
from charjax.ops.lstm.single_step import StepState, StepWeights, first_layer, logits, start, step
from charjax.ops.lstm.target import target_platform

# Characters whose noise is drawn at once; XLA's loop takes as many per trip.
BLOCK = 16

Weights = StepWeights | PackedWeights


class DecodeState(NamedTuple):
    """Where a batch of texts stands.

    Attributes:
        carry: recurrent state after the last character, [B, H] per layer.
        keys: [B] Threefry keys, one per text.
        position: [] int32, characters drawn so far; folded into the keys.
    """

    carry: Carry
    keys: Array
    position: Array


@functools.partial(jax.jit, static_argnums=0)
def init_state(model: CharLSTM, keys: Array) -> DecodeState:
    """The state before any character, of as many texts as there are keys; other keys than Threefry's become such."""
    if jax.random.key_impl(keys) != "threefry2x32":
        bits = jax.vmap(functools.partial(jax.random.bits, shape=(2,), dtype=jnp.uint32))(keys)
        keys = jax.random.wrap_key_data(bits, impl="threefry2x32")
    return DecodeState(init_carry(model, len(keys)), keys, jnp.zeros((), jnp.int32))


def capacity_for(length: int) -> int:
    """Characters to make room for: `length` rounded up, so that few lengths compile anew."""
    blocks = -(-length // BLOCK)
    return BLOCK << max(0, blocks - 1).bit_length() if blocks else 0


def with_room(ids: jax.typing.ArrayLike) -> np.ndarray | Array:
    """Ids [B, P] with room for more behind them, so that few P compile anew."""
    size = np.shape(ids)[1]
    room = ((0, 0), (0, capacity_for(size) - size))
    return np.pad(ids, room) if isinstance(ids, np.ndarray) else jnp.pad(jnp.asarray(ids), room)


def kernel_for(model: CharLSTM) -> Library | None:
    """The compiled form of the kernel that takes a model's steps; None where XLA does."""
    serves = target_platform() == "cpu" and model.implementation in (None, "native")
    return library_for_steps() if serves else None


@functools.partial(jax.jit, static_argnums=(0, 2))
def arrange(model: CharLSTM, params: Params, dtype: str = "auto") -> Weights:
    """The parameters as a step takes them: joined, rounded and packed once, whatever number of pieces a text comes in.

    Args:
        model: the model.
        params: its parameters.
        dtype: format of the weights, "auto" for the model's; "int8" stores them in eight bits, see
            `charjax.ops.lstm.native.steps`.

    Raises:
        NotImplementedError: int8 where the kernel for processors does not serve it.
    """
    wanted = model.dtype if dtype == "auto" else dtype
    if (library := kernel_for(model)) is not None:
        head = params["head"]
        return pack(layer_weights(model, params), head["kernel"], head["bias"], wanted, library)
    if wanted == "int8":
        raise NotImplementedError(
            "int8 weights take the compiled kernel for processors, which does not serve here; use bfloat16 or float32"
        )
    return step_weights(model.clone(dtype=wanted), params)


def read(
    model: CharLSTM,
    params: Params,
    weights: Weights,
    state: DecodeState,
    ids: jax.typing.ArrayLike,
    lengths: jax.typing.ArrayLike | None = None,
) -> DecodeState:
    """The state after some more characters, which are given.

    Args:
        model: the model.
        params: its parameters.
        weights: from `arrange`.
        state: before them.
        ids: [B, P] integer.
        lengths: [B] integer, how many of a row's characters to read; by default all.
    """
    if isinstance(weights, PackedWeights):
        lengths = np.int32(np.shape(ids)[1]) if lengths is None else lengths
        return _read_by_kernel(model, weights, state, with_room(ids), lengths)
    if lengths is None:
        return _read_at_once(model, params, state, ids)
    return _read_step_by_step(weights, state, ids, lengths)


@functools.partial(jax.jit, static_argnums=0)
def _read_by_kernel(
    model: CharLSTM, weights: PackedWeights, state: DecodeState, ids: Array, lengths: Array
) -> DecodeState:
    ids = ids.astype(jnp.int32)
    # A negative number is no request to draw, but a character that the vocabulary lacks.
    given = jnp.where(_within(ids, lengths), jnp.where(ids < 0, model.vocab_size, ids), REST)
    return state._replace(carry=_read_given(model, weights, state.carry, given)[1])


def logits_along(
    model: CharLSTM, weights: PackedWeights, carry: Carry, ids: Array, begins: Array
) -> tuple[Array, Carry]:
    """Reads ids [B, T] int32 by the kernel, from an empty state where begins [B, T] is true.

    Returns:
        What was said of each character before it was read, [B, T, V] float32, and the state after the last.
    """
    return _read_given(model, weights, carry, jnp.where(begins, RESET - ids, ids), with_logits=True)


def _read_given(
    model: CharLSTM, weights: PackedWeights, carry: Carry, given: Array, *, with_logits: bool = False
) -> tuple[Array, Carry]:
    """Takes steps with no character to choose: -> (logits, if they are wanted, and the carry)."""
    batch = given.shape[0]
    _, carry, logits = take_steps(
        *_kernel(weights),
        weights,
        carry,
        given,
        jnp.broadcast_to(jax.random.key(0, impl="threefry2x32"), batch),  # nothing is drawn
        jnp.zeros((), jnp.int32),
        make_choice(SampleConfig(), batch),
        vocab_size=model.vocab_size,
        with_logits=with_logits,
    )
    return logits, carry


@functools.partial(jax.jit, static_argnums=0)
def _read_at_once(model: CharLSTM, params: Params, state: DecodeState, ids: Array) -> DecodeState:
    if not ids.shape[1]:
        return state
    return state._replace(carry=model.apply({"params": params}, ids, state.carry)[1])


@jax.jit
def _read_step_by_step(weights: StepWeights, state: DecodeState, ids: Array, lengths: Array) -> DecodeState:
    def one(steps: StepState, at: tuple[Array, Array]) -> tuple[StepState, None]:
        ids_B, reads_B = at
        after = step(weights, steps, first_layer(weights, steps, ids_B))
        # The texts are the second axis of products, the first of all else.
        carry = jax.tree.map(lambda new, old: jnp.where(reads_B[:, None], new, old), after.carry, steps.carry)
        products = (
            jnp.where(reads_B[None, :, None], new, old) for new, old in zip(after.products, steps.products, strict=True)
        )
        return StepState(carry, tuple(products)), None

    steps, _ = jax.lax.scan(one, start(weights, state.carry), (ids.T, _within(ids, lengths).T))
    return state._replace(carry=steps.carry)


def _within(ids: Array, lengths: Array) -> Array:
    """Which of the characters [B, P] stand before their row's length; one length may stand for all rows."""
    lengths_B1 = jnp.broadcast_to(lengths, ids.shape[0])[:, None]
    return jnp.arange(ids.shape[1])[None] < lengths_B1


@functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "filtered", "interpret"))
def decode(
    model: CharLSTM,
    weights: Weights,
    state: DecodeState,
    choice: Choice,
    length: Array,
    *,
    capacity: int,
    filtered: bool,
    interpret: Any = None,
) -> tuple[DecodeState, Array]:
    """Draws `length` characters for each text.

    Args:
        model: the model.
        weights: from `arrange`.
        state: before them.
        choice: the settings.
        length: [] int32, at most `capacity`; another one does not compile anew. It is rounded up to whole blocks.
        capacity: a multiple of BLOCK.
        filtered: whether characters are ruled out.
        interpret: where the model's implementation is "mosaic_gpu", a kernel for GPUs chooses the characters, unless
            some are ruled out; this interprets it on any platform, for tests, see `mosaic_sample.choose`.

    Returns:
        The state after the whole blocks, and ids [B, capacity] int32, of which the first `length` are drawn.
    """
    blocks = -(-length // BLOCK)
    if isinstance(weights, PackedWeights):
        carry, ids = _write_by_kernel(weights, state, choice, blocks * BLOCK, capacity, model.vocab_size)
    else:
        carry, ids = _write_by_xla(model, weights, state, choice, blocks, capacity, filtered, interpret)
    return DecodeState(carry, state.keys, state.position + blocks * BLOCK), ids


def _write_by_kernel(
    weights: PackedWeights, state: DecodeState, choice: Choice, length: Array, capacity: int, vocab_size: int
) -> tuple[Carry, Array]:
    library, dtype = _kernel(weights)
    given = jnp.where(jnp.arange(capacity) < length, DRAW, REST)
    ids, carry, _ = take_steps(
        library,
        dtype,
        weights,
        state.carry,
        jnp.broadcast_to(given[None], (len(state.keys), capacity)),
        state.keys,
        state.position,
        choice,
        vocab_size=vocab_size,
    )
    return carry, ids


def _write_by_xla(
    model: CharLSTM,
    weights: StepWeights,
    state: DecodeState,
    choice: Choice,
    blocks: Array,
    capacity: int,
    filtered: bool,
    interpret: Any,
) -> tuple[Carry, Array]:
    carry, batch = state.carry, len(state.keys)
    kernel = mosaic_sample.serves(model.implementation, interpret) and not filtered
    if kernel:
        weights, carry = mosaic_sample.pad_weights(weights), mosaic_sample.pad_carry(carry)

    def draw(steps: StepState, noise_BV: Array) -> tuple[StepState, Array]:
        choose_each = jax.vmap(functools.partial(choose, filtered=filtered))
        ids_B = choose_each(noise_BV, logits(weights, steps), choice)
        return step(weights, steps, first_layer(weights, steps, ids_B)), ids_B

    def draw_in_kernel(noise_TBV: Array, steps: StepState, number: Array) -> tuple[StepState, Array]:
        ids_B, first, operand = mosaic_sample.choose(weights, steps, noise_TBV, number, choice.temperature, interpret)
        return step(weights, steps, first, operand), ids_B

    # A GPU's host asks once per trip of a loop whether to go on; a processor has more to compile, and gains nothing.
    unroll = BLOCK if target_platform() != "cpu" else 1

    def block(number: Array, before: tuple[StepState, Array]) -> tuple[StepState, Array]:
        steps, ids = before
        positions = state.position + BLOCK * number + jnp.arange(BLOCK)
        noise_TBV = draw_noise(state.keys, positions, model.vocab_size)
        if kernel:
            draw_one = functools.partial(draw_in_kernel, mosaic_sample.pad_noise(noise_TBV))
            steps, ids_TB = jax.lax.scan(draw_one, steps, mosaic_sample.numbers(BLOCK), unroll=unroll)
        else:
            steps, ids_TB = jax.lax.scan(draw, steps, noise_TBV, unroll=unroll)
        return steps, jax.lax.dynamic_update_index_in_dim(ids, ids_TB, number, 0)

    steps = start(weights, carry, summands=mosaic_sample.summands(batch) if kernel else 1)
    ids_NTB = jnp.zeros((capacity // BLOCK, BLOCK, batch), jnp.int32)
    if capacity:
        steps, ids_NTB = jax.lax.fori_loop(0, blocks, block, (steps, ids_NTB))
    carry = mosaic_sample.cut_carry(steps.carry, model.hidden_dim) if kernel else steps.carry
    return carry, ids_NTB.reshape(capacity, batch).T


def _kernel(weights: PackedWeights) -> tuple[Library, str]:
    """The compiled form that weights were packed for, and their format."""
    library = library_for_steps()
    assert library is not None  # it packed them
    return library, weights.kernels.dtype.name
