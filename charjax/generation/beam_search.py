"""Beam search, which finds the most likely continuations of a context in one jitted call.

The beams are the rows of a batch. Each step scores every possible next character of every beam, keeps the best W of
these W x V candidates and reorders the recurrent state to match. Reordering the generated characters as well would copy
all of them at every step. Instead, each step stores only W backpointers (the parent beam and the character), which are
followed from the end once the search is over.
"""

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.config import Bounds, Checked, Count, OnUnknown
from charjax.data.vocab import Vocab, encode_context
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError, check_type, checked_whole
from charjax.generation.blocks import steps_per_trip
from charjax.generation.inputs import check_vocab, checked_ids, checked_params
from charjax.generation.xla_decoder import XlaDecoder, XlaWeights
from charjax.host.jax_modes import in_default_modes
from charjax.memory_budget import check_room_to_sample
from charjax.model import CharLSTM, check_model
from charjax.ops.lstm import single_step
from charjax.ops.lstm.single_step import StepState

# The smallest capacity, in characters; larger ones are powers of two, to limit recompilation.
LEAST_CAPACITY = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted(Checked):
    """The caller's numeric arguments, validated."""

    length: Annotated[int, Bounds("a whole number from 0 to 1000000000", 0, 10**9)]
    beam_width: Count
    length_penalty: Annotated[float, Bounds("a number from -10 to 10", -10, 10)]


class Goal(NamedTuple):
    """The limit, end and penalty of a search, as arrays so that new values do not trigger recompilation.

    Attributes:
        length: [] int32, the maximum number of characters per continuation.
        end: [] int32, the id that ends a continuation; -1 for none.
        penalty: [] float32, the exponent alpha of GNMT's length penalty.
    """

    length: Array
    end: Array
    penalty: Array


class Texts(NamedTuple):
    """W continuations, best first, as entry points into the backpointers.

    Attributes:
        scores: [W] float32, the scores they are ranked by; -inf for an unused entry.
        log_probs: [W] float32.
        counts: [W] int32, the number of characters, not counting the end.
        beams: [W] int32, the beam that holds the last character.
        ended: [W] bool, whether the end follows.
    """

    scores: Array
    log_probs: Array
    counts: Array
    beams: Array
    ended: Array


class Search(NamedTuple):
    """The state of a search.

    Attributes:
        position: [] int32, the number of characters generated so far.
        steps: the recurrent state of every beam.
        scores: [W] float32, log-probabilities minus `offset`, best first; -inf for an unused beam. Being relative to
            the best, they stay near 0, where float32 can tell close scores apart even in long continuations.
        offset: [] float32, the best log-probability.
        backpointers: [C, W] int32, for each character V * (index of its parent beam) + id.
        finished: the continuations that have ended.
    """

    position: Array
    steps: StepState
    scores: Array
    offset: Array
    backpointers: Array
    finished: Texts


@in_default_modes
def beam_search(
    model: CharLSTM,
    params: Params,
    context: jax.typing.ArrayLike,
    *,
    length: int,
    beam_width: int,
    length_penalty: float = 0.0,
    end: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Searches for the most likely continuations of `context`, keeping the best `beam_width` of them at every step.

    With `end`, a continuation that reaches this character is finished and set aside, and continuations are ranked by
    their log-probability divided by ((5 + n) / 6) ** length_penalty, where n is the number of characters including the
    end (Wu et al. 2016, GNMT); those that reach `length` without an end are ranked with them. The search stops once no
    unfinished continuation can overtake the finished ones.

    Args:
        model: the model.
        params: its parameters.
        context: [P] integer, the ids to continue; if P = 0, the first character is scored under the prediction of a
            zero state, i.e. the head's bias.
        length: the number of characters to generate, at least 0; with `end`, the maximum.
        beam_width: W; 1 is argmax, V ** (length - 1) or more is exhaustive.
        length_penalty: alpha, from -10 to 10. With 0, continuations are ranked by log-probability, which favors short
            ones; values from 0.6 to 1 compensate for that. Without `end`, all continuations have the same length, and
            it has no effect.
        end: the id that ends a continuation, e.g. that of a line break.

    Returns:
        ids [W, length] int32, best first, and log_probs [W] float32, each summed over the whole continuation. Ids after
        the end are -1. If there are fewer than W continuations, the remaining rows are -1 throughout, with a log_prob
        of -inf. Ties go to the better beam, then to the lower id.

    Raises:
        UserError: an argument is out of range, or params do not match the model.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, beam_search, init_params
        >>> model = CharLSTM(3, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> ids, log_probs = beam_search(model, params, [0, 1], length=4, beam_width=2)
        >>> ids.shape, bool(log_probs[0] >= log_probs[1])
        ((2, 4), True)
    """
    check_model(model)
    wanted = _Wanted(length=length, beam_width=beam_width, length_penalty=length_penalty)
    length = wanted.length
    if end is not None and checked_whole("end", end, least=0) >= model.vocab_size:
        raise UserError(f"end must be an id from 0 to {model.vocab_size - 1}, not {end}")
    context, params = checked_ids(context, model.vocab_size, "[P]", "context"), checked_params(model, params)
    goal = Goal(jnp.int32(length), jnp.int32(-1 if end is None else end), jnp.float32(wanted.length_penalty))
    found = _search(
        # The native kernel cannot reorder its state between steps.
        XlaDecoder(model, model.dtype),
        on_one_device(params),
        context,
        goal,
        width=wanted.beam_width,
        capacity=_capacity(length),
        ends=end is not None,
    )
    ids, log_probs = jax.device_get(found)
    return ids[:, :length], log_probs


@in_default_modes
def beam_search_text(
    model: CharLSTM,
    params: Params,
    vocab: Vocab,
    context: str = "",
    *,
    length: int = 500,
    beam_width: int = 8,
    length_penalty: float = 0.0,
    end: str | None = None,
    on_unknown: OnUnknown = "error",
) -> list[str]:
    r"""Searches for the most likely continuations of a context; see `beam_search`.

    Args:
        model: the model.
        params: its parameters.
        vocab: its vocabulary.
        context: the text to continue; if empty, it is replaced with a line break, provided the vocabulary contains it.
        length: the maximum number of characters per continuation, not counting the context.
        beam_width: the number of continuations to keep at every step and to return.
        length_penalty: see `beam_search`.
        end: the character that ends a continuation, e.g. "\n"; it is included.
        on_unknown: how to handle context characters that are not in the vocabulary, as in `Vocab.encode`.

    Returns:
        The continuations, best first, without the context; fewer than `beam_width` if there are no more.

    Raises:
        UserError: the vocabulary does not match the model, a character is not in it, a number is out of range, or
            there is not enough memory.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, beam_search_text, init_params
        >>> vocab = Vocab.from_text("abc")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> [len(text) for text in beam_search_text(model, params, vocab, "ab", length=4, beam_width=2)]
        [4, 4]
    """
    check_vocab(model, vocab)
    context_P = encode_context(vocab, context, on_unknown)
    if end is not None:
        check_type("end", end, str, "use a single character")
    end_ids = None if end is None else vocab.encode(end)
    if end_ids is not None and len(end_ids) != 1:
        raise UserError(f"end must be a single character in the {vocab.kind} vocabulary, not {end!r}")
    wanted = _Wanted(length=length, beam_width=beam_width, length_penalty=length_penalty)
    check_room_to_sample(
        model.config,
        model.vocab_size,
        num_samples=wanted.beam_width,
        length=_capacity(wanted.length),
        context_length=0,
        block=1,
        flags="--beam-width or --length",
    )
    ids, log_probs = beam_search(
        model,
        params,
        context_P,
        length=length,
        beam_width=beam_width,
        length_penalty=length_penalty,
        end=None if end_ids is None else int(end_ids[0]),
    )
    return [vocab.decode(row[row >= 0]) for row in ids[np.isfinite(log_probs)]]


def _capacity(length: int) -> int:
    return max(LEAST_CAPACITY, 1 << (length - 1).bit_length())


@functools.partial(jax.jit, static_argnums=0, static_argnames=("width", "capacity", "ends"))
def _search(
    decoder: XlaDecoder, params: Params, context: Array, goal: Goal, *, width: int, capacity: int, ends: bool
) -> tuple[Array, Array]:
    """Runs the search -> (ids [W, capacity] int32, log_probs [W]); with `ends` False, end ids are not handled."""
    weights = decoder.pack(params)
    search = _start(decoder, weights, context, width, capacity)

    def take_trips(size: int, search: Search) -> Search:
        """Extends the beams by `size` characters per iteration until fewer remain or the result is decided."""

        def extend(_: Array, search: Search) -> Search:
            return _extend(decoder, weights, goal, ends, search)

        return jax.lax.while_loop(
            lambda search: (search.position + size <= goal.length) & ~_is_decided(search, goal),
            lambda search: jax.lax.fori_loop(0, size, extend, search, unroll=True),
            search,
        )

    for size in sorted({steps_per_trip(), 1}, reverse=True):
        search = take_trips(size, search)
    # Without an end, the continuations are the beams that reached the full length.
    log_probs = jnp.where(search.position == goal.length, search.scores + search.offset, -jnp.inf)
    texts = _merge(search.finished, _texts(search, log_probs, goal, ended=False))
    return _trace_back(search.backpointers, texts, goal.end, decoder.model.vocab_size), texts.log_probs


def _start(decoder: XlaDecoder, weights: XlaWeights, context: Array, width: int, capacity: int) -> Search:
    """Reads the context; all beams start from its state, but only the first is in use, as the rest would be copies."""
    scores = jnp.full(width, -jnp.inf).at[0].set(0.0)
    nothing, nowhere = jnp.full(width, -jnp.inf), jnp.zeros(width, jnp.int32)
    return Search(
        jnp.zeros((), jnp.int32),
        single_step.take(decoder.prefill(weights, decoder.init(1), context[None]), nowhere),
        scores,
        jnp.zeros(()),
        jnp.zeros((capacity, width), jnp.int32),
        Texts(nothing, nothing, nowhere, nowhere, jnp.zeros(width, bool)),
    )


def _extend(decoder: XlaDecoder, weights: XlaWeights, goal: Goal, ends: bool, search: Search) -> Search:
    """Extends the beams by one character."""
    log_probs_WV = search.scores[:, None] + jax.nn.log_softmax(decoder.next_logits(weights, search.steps))
    finished, (width, vocab_size) = search.finished, log_probs_WV.shape
    if ends:
        finished = _merge(finished, _texts(search, log_probs_WV[:, goal.end] + search.offset, goal, ended=True))
        log_probs_WV = log_probs_WV.at[:, goal.end].set(-jnp.inf)
    scores, backpointers = jax.lax.top_k(log_probs_WV.reshape(-1), width)
    parents, ids = jnp.divmod(backpointers, vocab_size)
    steps = decoder.step(weights, single_step.take(search.steps, parents), ids)
    # No beam is left if the vocabulary contains only the end.
    best = jnp.where(jnp.isfinite(scores[0]), scores[0], 0)
    return Search(
        search.position + 1,
        steps,
        scores - best,
        search.offset + best,
        search.backpointers.at[search.position].set(backpointers),
        finished,
    )


def _divisor(counts: Array, penalty: Array) -> Array:
    """Returns the length normalization of GNMT, clipped to a range that log-probabilities can safely be divided by."""
    return jnp.clip(((5.0 + counts) / 6.0) ** penalty, 1e-30, 1e30)


def _texts(search: Search, log_probs: Array, goal: Goal, *, ended: bool) -> Texts:
    """Returns the beams as `Texts` with the given log_probs [W], with or without an end after each."""
    counts, beams = jnp.full_like(log_probs, search.position, jnp.int32), jnp.arange(len(log_probs))
    ranked = log_probs / _divisor(search.position + int(ended), goal.penalty)
    return Texts(ranked, log_probs, counts, beams, jnp.full_like(beams, ended, bool))


def _merge(first: Texts, second: Texts) -> Texts:
    """Returns the best W of both; ties go to `first`."""
    both: Texts = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, second)
    _, order = jax.lax.top_k(both.scores, len(first.scores))
    return jax.tree.map(lambda leaf: leaf[order], both)


def _is_decided(search: Search, goal: Goal) -> Array:
    """Returns True if no beam can still overtake the worst finished continuation.

    Log-probabilities only decrease, so the best score a beam can reach is its current log-probability divided by the
    largest divisor still to come.
    """
    divisor = jnp.maximum(_divisor(search.position + 1, goal.penalty), _divisor(goal.length, goal.penalty))
    return search.finished.scores[-1] >= search.offset / divisor


def _trace_back(backpointers: Array, texts: Texts, end: Array, vocab_size: int) -> Array:
    """Follows the backpointers from the last character to the first -> ids [W, C] int32."""

    def back(beams: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        position, backpointers_W = row
        parents, ids = jnp.divmod(backpointers_W[beams], vocab_size)
        written = (position < texts.counts) & jnp.isfinite(texts.log_probs)
        after = jnp.where((position == texts.counts) & texts.ended & jnp.isfinite(texts.log_probs), end, -1)
        return jnp.where(written, parents, beams), jnp.where(written, ids, after)

    rows = (jnp.arange(len(backpointers)), backpointers)
    return jax.lax.scan(back, texts.beams, rows, reverse=True, unroll=steps_per_trip())[1].T
