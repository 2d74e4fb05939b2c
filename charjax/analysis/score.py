"""How surprising each character of a text is to a model: -log p(character | all before it)."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from charjax.analysis.documents import DocumentFinder, regroup
from charjax.array_types import Array, Params
from charjax.distributed.mesh import on_one_device
from charjax.generation.decode import Weights, arrange, logits_along
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry
from charjax.ops.lstm.native.steps import PackedWeights
from charjax.ops.lstm.single_step import StepState, first_layer, logits, start, step
from charjax.ops.lstm.target import target_platform

# Between windows: what the kernel hands over, or XLA's steps.
_State = Carry | StepState

# Characters per compiled call: the last call of a text is filled up, so that one compilation serves every length.
WINDOW = 256
# Of a text read as streams: what each reads at a time, and what it reads before that to know where it stands.
STRETCH, BURN_IN = 2048, 256
# A GPU's host asks once per trip of a loop whether to go on; a processor has more to compile, and gains nothing.
_UNROLL_ON_DEVICES = 16


class ScoredPiece(NamedTuple):
    """Some consecutive characters of a text and what the model made of each.

    Attributes:
        ids: [n] integer, the characters.
        nats: [n] float32, -log p(character | those before it in its document).
        begins: [n] bool, where a document begins: the state is empty there, and what the model says of it is what it
            says before any character (softmax of the head's bias), as `generate` has it for a context of no characters.
        top_ids: [n, K] int32, the characters that the model held most likely in this place, likeliest first.
        top_probs: [n, K] float32, their probabilities.
    """

    ids: np.ndarray
    nats: np.ndarray
    begins: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray


class _Scores(NamedTuple):
    """[B, T] float32, [B, T, K] int32 and [B, T, K] float32; see `ScoredPiece`."""

    nats: Any
    top_ids: Any
    top_probs: Any


def score(model: CharLSTM, params: Params, ids: jax.typing.ArrayLike, *, window: int = WINDOW) -> np.ndarray:
    """How surprising each character is, in nats: the mean is the loss, exp of the mean the perplexity.

    Args:
        model: the model; nothing is dropped.
        params: its parameters.
        ids: [B, N] integer in [0, V), N >= 1, texts that are read side by side, each from an empty state.
        window: characters per compiled call, which bounds the memory on the device; the result does not depend on it,
            bit for bit.

    Returns:
        nats [B, N - 1] float32: -log p(ids[b, t + 1] | ids[b, :t + 1]). The first character of a row has nothing
        before it and is not scored; `score_pieces` tells what the model makes of it.

    Raises:
        ValueError: ids that are not [B, N] integers in [0, V), or a window below 1.
    """
    _check_at_least_one(window=window)
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.shape[1] or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be [B, N] integers with N >= 1, not {ids.shape} {ids.dtype}")
    if not ids.shape[0]:
        return np.zeros((0, ids.shape[1] - 1), np.float32)
    begins = np.zeros(ids.shape, bool)
    begins[:, 0] = True
    blocks = ((ids[:, at : at + window], begins[:, at : at + window]) for at in range(0, ids.shape[1], window))
    scores = _score_blocks(model, params, blocks, batch_size=len(ids), top=0, window=window)
    return np.concatenate([block.nats for block in scores], axis=1)[:, 1:]


def score_pieces(
    model: CharLSTM,
    params: Params,
    pieces: Iterable[np.ndarray],
    *,
    separator: np.ndarray | None = None,
    top: int = 0,
    streams: int = 1,
    window: int = WINDOW,
) -> Iterator[ScoredPiece]:
    """Scores a text that comes in pieces, in memory that does not grow with it; a piece is asked for when it is due.

    Args:
        model: the model; nothing is dropped.
        params: its parameters.
        pieces: [n] integer in [0, V) each, of any lengths, which do not matter to the result.
        separator: ids that end a document, wherever they stand, across pieces too. The separator belongs to the
            document that it ends, and the next document is read from an empty state. None takes all as one document.
        top: K, how many of the likeliest characters to tell; at most V are told.
        streams: how many parts of the text to read side by side, several times as fast. Each part, of 2048 characters,
            begins 256 characters early, to warm its state up: what the state remembers longer than that is lost.
            1 reads the text as one, exactly.
        window: see `score`.

    Yields:
        The text in order, every character once, the first of each document too (`ScoredPiece.begins`).

    Raises:
        UserError: an empty separator.
        ValueError: ids out of range, streams or a window below 1.
    """
    _check_at_least_one(streams=streams, window=window)
    finder, top = DocumentFinder(separator), min(top, model.vocab_size)
    if streams > 1:
        yield from _in_streams(model, params, pieces, finder, streams=streams, top=top, window=window)
        return
    sent: list[tuple[np.ndarray, np.ndarray]] = []

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids in regroup(pieces, window):
            sent.append((ids, finder.begins(ids)))
            yield ids[None], sent[-1][1][None]

    for scores in _score_blocks(model, params, blocks(), batch_size=1, top=top, window=window):
        ids, begins = sent.pop(0)
        yield ScoredPiece(ids, scores.nats[0], begins, scores.top_ids[0], scores.top_probs[0])


def _in_streams(
    model: CharLSTM,
    params: Params,
    pieces: Iterable[np.ndarray],
    finder: DocumentFinder,
    *,
    streams: int,
    top: int,
    window: int,
) -> Iterator[ScoredPiece]:
    """Scores a text as B streams that stand beside each other in it, each read from BURN_IN characters before it."""
    ids_before, begins_before = np.zeros(BURN_IN, np.int32), np.zeros(BURN_IN, bool)
    for ids in regroup(pieces, streams * STRETCH):
        begins = finder.begins(ids)
        # The last of a text are shared out as evenly.
        stretch = -(-len(ids) // streams)
        missing = (0, streams * stretch - len(ids))
        # Where there is no text, in front of all, what is read does not count: a document begins after it.
        rows_ids, rows_begins = (
            np.lib.stride_tricks.sliding_window_view(values, BURN_IN + stretch)[::stretch]
            for values in (
                np.concatenate([ids_before, np.pad(ids.astype(np.int32), missing)]),
                np.concatenate([begins_before, np.pad(begins, missing)]),
            )
        )
        blocks = (
            (rows_ids[:, at : at + window], rows_begins[:, at : at + window])
            for at in range(0, BURN_IN + stretch, window)
        )
        parts = list(_score_blocks(model, params, blocks, batch_size=streams, top=top, window=window))
        joined = (np.concatenate(values, axis=1)[:, BURN_IN:] for values in zip(*parts, strict=True))
        nats, top_ids, top_probs = (
            values.reshape(streams * stretch, *values.shape[2:])[: len(ids)] for values in joined
        )
        yield ScoredPiece(ids, nats, begins, top_ids, top_probs)
        ids_before = np.concatenate([ids_before, ids])[-BURN_IN:].astype(np.int32)
        begins_before = np.concatenate([begins_before, begins])[-BURN_IN:]


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _score_blocks(
    model: CharLSTM,
    params: Params,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    top: int,
    window: int,
) -> Iterator[_Scores]:
    """Scores consecutive blocks of B texts, (ids [B, n], begins [B, n]) with n <= window, one ahead of what is read."""
    weights, carry = arrange(model, on_one_device(params)), init_carry(model, batch_size)
    state: _State = carry if isinstance(weights, PackedWeights) else start(weights, carry)
    pending: tuple[_Scores, int] | None = None
    for ids, begins in blocks:
        if ids.min() < 0 or ids.max() >= model.vocab_size:
            raise ValueError(f"ids must lie in [0, {model.vocab_size}), not in [{ids.min()}, {ids.max()}]")
        missing = ((0, 0), (0, window - ids.shape[1]))
        # What fills the last block up comes after all that is looked at.
        state, scores = _score_window(
            model, weights, state, np.pad(ids.astype(np.int32), missing), np.pad(begins, missing), top=top
        )
        if pending is not None:
            yield _fetch(*pending)
        pending = (scores, ids.shape[1])
    if pending is not None:
        yield _fetch(*pending)


def _fetch(scores: _Scores, length: int) -> _Scores:
    return _Scores(*(np.asarray(values)[:, :length] for values in scores))


@functools.partial(jax.jit, static_argnums=0, static_argnames="top", donate_argnums=2)
def _score_window(
    model: CharLSTM, weights: Weights, state: _State, ids: Array, begins: Array, *, top: int
) -> tuple[_State, _Scores]:
    """Reads ids [B, T] int32 on from a state, emptied where begins [B, T] is true: -> (state after them, scores).

    Step by step, as characters are generated: no step's arithmetic depends on how many there are, and the state can be
    emptied between any two.
    """
    if isinstance(weights, PackedWeights):
        logits_BTV, carry = logits_along(model, weights, cast(Carry, state), ids, begins)
        # Window by window, sums over the vocabulary would be added up in another order in windows of another size.
        scores = jax.lax.map(lambda now: _judge(now[0], now[1], top), (jnp.swapaxes(logits_BTV, 0, 1), ids.T))
        return carry, _Scores(*(jnp.swapaxes(values, 0, 1) for values in scores))

    def one(state: StepState, now: tuple[Array, Array]) -> tuple[StepState, _Scores]:
        ids_B, begins_B = now
        state = _emptied(state, begins_B)
        scores = _judge(logits(weights, state), ids_B, top)
        return step(weights, state, first_layer(weights, state, ids_B)), scores

    unroll = 1 if target_platform() == "cpu" else _UNROLL_ON_DEVICES
    after, scores = jax.lax.scan(one, cast(StepState, state), (ids.T, begins.T), unroll=unroll)
    return after, _Scores(*(jnp.swapaxes(values, 0, 1) for values in scores))


def _judge(logits: Array, ids: Array, top: int) -> _Scores:
    """What logits [..., V] make of ids [...]."""
    ranked, top_ids = jax.lax.top_k(jax.nn.log_softmax(logits), top)
    return _Scores(cross_entropy(logits, ids), top_ids, jnp.exp(ranked))


def _emptied(state: StepState, where_B: Array) -> StepState:
    """The state before any character for some rows: of an h of zeros, the products are zeros, too."""
    zero = lambda values, rows: jnp.where(rows, jnp.zeros_like(values), values)  # noqa: E731
    return StepState(
        jax.tree.map(lambda values_BH: zero(values_BH, where_B[:, None]), state.carry),
        jax.tree.map(lambda products_SBN: zero(products_SBN, where_B[None, :, None]), state.products),
    )
