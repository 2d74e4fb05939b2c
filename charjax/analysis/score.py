"""Text scoring: -log p(character | all before it) for every character."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.analysis.documents import DocumentFinder, regroup
from charjax.array_types import Array, Params
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError, checked_whole
from charjax.generation.decoder import Decoder, State, Weights, make_decoder
from charjax.generation.inputs import checked_ids, checked_params
from charjax.host.jax_modes import in_default_modes
from charjax.metrics import cross_entropy
from charjax.model import CharLSTM

# Characters per compiled call; the last call is padded so that one compilation serves every length.
WINDOW = 256
# When scoring with multiple streams: the characters per part, and the burn-in characters before each part that warm up
# the state.
STRETCH, BURN_IN = 2048, 256


class ScoredPiece(NamedTuple):
    """Consecutive characters of the text, with the model's predictions.

    Attributes:
        ids: [n] integer, the characters.
        nats: [n] float32, -log p(character | those before it in its document).
        begins: [n] bool, whether a document begins here. Its first character is predicted from a zero state, i.e. by
            the head's bias, as in `generate` with an empty context.
        top_ids: [n, K] int32, the K most likely characters at each position, most likely first.
        top_probs: [n, K] float32, their probabilities.

    Examples:
        >>> import numpy as np
        >>> from charjax import ScoredPiece
        >>> ids, nats = np.array([3, 1]), np.array([1.5, 0.5], np.float32)
        >>> piece = ScoredPiece(ids, nats, np.array([True, False]), np.array([[3], [2]]), np.array([[0.2], [0.4]]))
        >>> float(piece.nats[~piece.begins].mean())
        0.5
    """

    ids: np.ndarray
    nats: np.ndarray
    begins: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray


class Scores(NamedTuple):
    """Nats [...] float32, the K most likely ids [..., K] int32 and their probabilities [..., K] float32."""

    nats: Any
    top_ids: Any
    top_probs: Any


@in_default_modes
def score(model: CharLSTM, params: Params, ids: jax.typing.ArrayLike, *, window: int = WINDOW) -> np.ndarray:
    """Returns -log p of every character but the first, in nats; their mean is the loss, whose exp is the perplexity.

    Args:
        model: the model; dropout is off.
        params: its parameters.
        ids: [B, N] integer in [0, V), N >= 1; the rows are read in parallel, each from a zero state.
        window: characters per compiled call, which bounds memory use on the device; the result is bitwise identical for
            any window.

    Returns:
        nats [B, N - 1] float32: -log p(ids[b, t + 1] | ids[b, :t + 1]). The first character of a row has no context and
        is not scored; `score_pieces` scores it from a zero state.

    Raises:
        UserError: ids are not [B, N] integers in [0, V), params do not match the model, or window is below 1.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, score
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> score(model, params, vocab.encode("coffee")[None]).shape
        (1, 5)
    """
    params, window = checked_params(model, params), checked_whole("window", window)
    ids_BN: np.ndarray = checked_ids(ids, model.vocab_size, "[B, N]")
    batch, length = ids_BN.shape
    if not length:
        raise UserError("ids must be [B, N] with N >= 1, not N = 0")
    if not batch:
        return np.zeros((0, length - 1), np.float32)
    begins = np.zeros((batch, length), bool)
    begins[:, 0] = True
    chunks = ((ids_BN[:, at : at + window], begins[:, at : at + window]) for at in range(0, length, window))
    decoder = make_decoder(model)
    weights = decoder.pack(on_one_device(params))
    scores = _score_chunks(decoder, weights, chunks, batch=batch, top=0, window=window)
    return np.concatenate([chunk.nats for chunk in scores], axis=1)[:, 1:]


@in_default_modes
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
    """Scores text that arrives in pieces, which are consumed lazily; memory use does not grow with its length.

    Args:
        model: the model; dropout is off.
        params: its parameters.
        pieces: [n] integer in [0, V) each; how the text is split into pieces does not affect the result.
        separator: ids that end a document wherever they occur, even across pieces. The separator is part of the
            document that it ends, and the next document is read from a zero state. None treats the whole text as one
            document.
        top: K, the number of most likely characters to return, at most V.
        streams: the number of parts of the text to read in parallel, which is several times faster. Reading of each
            2048-character part starts 256 characters early to warm up its state; anything older is forgotten. With 1,
            the text is read in a single pass and the scores are exact.
        window: see `score`.

    Yields:
        Consecutive pieces that together contain every character of the text exactly once, including the first of each
        document (`ScoredPiece.begins`).

    Raises:
        UserError: the separator is empty, ids are not in [0, V), params do not match the model, or streams or window is
            below 1.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, score_pieces
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> pieces = (vocab.encode(text) for text in ("cof", "fee"))
        >>> [vocab.decode(piece.ids) for piece in score_pieces(model, params, pieces)]
        ['coffee']
    """
    params = checked_params(model, params)
    streams, window = checked_whole("streams", streams), checked_whole("window", window)
    if separator is not None:
        separator = checked_ids(separator, model.vocab_size, "[m]", "separator")
    finder, top = DocumentFinder(separator), min(checked_whole("top", top, least=0), model.vocab_size)
    if not isinstance(pieces, Iterable):
        raise UserError(f"pieces must be a list or iterator of ids [n], not {type(pieces).__name__}")
    pieces = (checked_ids(piece, model.vocab_size, "[n]", "each of pieces") for piece in pieces)
    decoder = make_decoder(model)
    weights = decoder.pack(on_one_device(params))
    if streams > 1:
        yield from _score_streams(decoder, weights, pieces, finder, streams=streams, top=top, window=window)
        return
    sent: list[tuple[np.ndarray, np.ndarray]] = []

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids in regroup(pieces, window):
            sent.append((ids, finder.begins(ids)))
            yield ids[None], sent[-1][1][None]

    for scores in _score_chunks(decoder, weights, chunks(), batch=1, top=top, window=window):
        ids, begins = sent.pop(0)
        yield ScoredPiece(ids, scores.nats[0], begins, scores.top_ids[0], scores.top_probs[0])


def judge(logits: Array, ids: Array, top: int) -> Scores:
    """Returns the scores of ids [...] under logits [..., V], with the `top` most likely characters."""
    ranked, top_ids = jax.lax.top_k(jax.nn.log_softmax(logits), top)
    return Scores(cross_entropy(logits, ids), top_ids, jnp.exp(ranked))


def _score_streams(
    decoder: Decoder,
    weights: Weights,
    pieces: Iterable[np.ndarray],
    finder: DocumentFinder,
    *,
    streams: int,
    top: int,
    window: int,
) -> Iterator[ScoredPiece]:
    """Scores the text as a batch of adjacent parts, each read from BURN_IN characters before its start."""
    ids_before, begins_before = np.zeros(BURN_IN, np.int32), np.zeros(BURN_IN, bool)
    for ids in regroup(pieces, streams * STRETCH):
        begins = finder.begins(ids)
        # The end of the text is divided evenly among the streams as well.
        stretch = -(-len(ids) // streams)
        missing = (0, streams * stretch - len(ids))
        # Zeros are read before the start of the text; they have no effect, because a document begins right after them.
        rows_ids, rows_begins = (
            np.lib.stride_tricks.sliding_window_view(values, BURN_IN + stretch)[::stretch]
            for values in (
                np.concatenate([ids_before, np.pad(ids, missing)]),
                np.concatenate([begins_before, np.pad(begins, missing)]),
            )
        )
        chunks = (
            (rows_ids[:, at : at + window], rows_begins[:, at : at + window])
            for at in range(0, BURN_IN + stretch, window)
        )
        parts = list(_score_chunks(decoder, weights, chunks, batch=streams, top=top, window=window))
        joined = (np.concatenate(values, axis=1)[:, BURN_IN:] for values in zip(*parts, strict=True))
        nats, top_ids, top_probs = (
            values.reshape(streams * stretch, *values.shape[2:])[: len(ids)] for values in joined
        )
        yield ScoredPiece(ids, nats, begins, top_ids, top_probs)
        ids_before = np.concatenate([ids_before, ids])[-BURN_IN:]
        begins_before = np.concatenate([begins_before, begins])[-BURN_IN:]


def _score_chunks(
    decoder: Decoder,
    weights: Weights,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    batch: int,
    top: int,
    window: int,
) -> Iterator[Scores]:
    """Scores consecutive chunks (ids [B, n], begins [B, n]), n <= window, of B sequences; dispatches one ahead."""
    state = decoder.init(batch)
    pending: tuple[Scores, int] | None = None
    for ids, begins in chunks:
        # The padding of the last chunk comes after everything that is returned, so it has no effect.
        missing = ((0, 0), (0, window - ids.shape[1]))
        state, scores = _score_chunk(decoder, weights, state, np.pad(ids, missing), np.pad(begins, missing), top=top)
        if pending is not None:
            yield _fetch(*pending)
        pending = (scores, ids.shape[1])
    if pending is not None:
        yield _fetch(*pending)


@functools.partial(jax.jit, static_argnums=0, static_argnames="top", donate_argnums=2)
def _score_chunk(
    decoder: Decoder, weights: Weights, state: State, ids: Array, begins: Array, *, top: int
) -> tuple[State, Scores]:
    """Scores ids [B, T] int32, read from a zero state where begins [B, T] is true -> (state after them, scores)."""
    scores, state = decoder.logits(weights, state, ids, begins, functools.partial(judge, top=top))
    return state, scores


def _fetch(scores: Scores, length: int) -> Scores:
    return Scores(*(np.asarray(values)[:, :length] for values in scores))
