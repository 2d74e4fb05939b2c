"""Dynamic evaluation: a text is scored while the weights learn from what was scored before.

A text repeats itself: its names, its words, its style. Dynamic evaluation takes a step of gradient descent after every
segment, so that what was read helps with what comes (Mikolov et al. 2010). Each segment is scored by weights that have
not seen it, and the scores say as honestly as static ones how well the text was predicted.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.analysis.documents import SegmentBlock, segment_blocks
from charjax.analysis.score import ScoredPiece, score_pieces
from charjax.array_types import Array, Ids, Params
from charjax.config import DynamicConfig
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry
from charjax.ops.lstm.target import target_platform

# Of the mean gradient. At 0.01, weights whose gradients were near zero, as those of a rare character are, moved so far
# at its first occurrence that some characters after it cost 60 nats.
EPSILON = 0.1
# Characters per call, which bound the memory.
CHUNK = 4000
# What is read of a training text to measure gradients on, and in how many stretches, spread over it.
MEASURED, STRETCHES = 10_000, 20
# Mean gradients below this come of a text that is foreseen with certainty, and move nothing.
_LEAST_GRADIENT = 1e-8
# From so many segments on, the mean of squared gradients slowly forgets: float32 would not notice what comes.
_MOST_SEGMENTS = 1e6


class DynamicScore(NamedTuple):
    """What dynamic evaluation finds.

    Attributes:
        nats: [N - 1] float32, -log p(character | all before it) of every character but the first.
        static_nats: [N - 1] float32, the same with the weights as they were; see `charjax.analysis.score`.
        params: the weights after the text, which `generate` goes on from in the text's manner.
    """

    nats: np.ndarray
    static_nats: np.ndarray
    params: Params

    @property
    def loss(self) -> float:
        """Mean nats per character."""
        return float(np.mean(self.nats, dtype=np.float64))

    @property
    def static_loss(self) -> float:
        """Mean nats per character with the weights as they were."""
        return float(np.mean(self.static_nats, dtype=np.float64))


class DynamicPiece(NamedTuple):
    """Some consecutive characters of a text, scored twice; `ids` and `begins` are the same in both.

    Attributes:
        dynamic: what the weights made of them that had learned from all segments before.
        static: what the weights made of them as they were.
    """

    dynamic: ScoredPiece
    static: ScoredPiece


class _Rates(NamedTuple):
    """How the weights move; arrays, so that another value does not compile anew.

    Attributes:
        learning_rate: [] float32, eta.
        decay: [] float32, lambda.
    """

    learning_rate: np.float32
    decay: np.float32


class _Adaptation(NamedTuple):
    """Where the reading of a text stands.

    Attributes:
        params: the weights now.
        carry: the recurrent state that they left.
        squares: mean of squared gradients, in the shape of the weights.
        segments: [] float32, of how many segments.
    """

    params: Params
    carry: Carry
    squares: Params
    segments: Array


class _Scores(NamedTuple):
    """What was made of a block: of each window's first character as a document's first, then of its labels.

    Attributes:
        nats: [S, T + 1] float32.
        top_ids: [S, T + 1, K] int32.
        top_probs: [S, T + 1, K] float32.
    """

    nats: Array
    top_ids: Array
    top_probs: Array


def dynamic_score(
    model: CharLSTM,
    params: Params,
    ids: np.ndarray,
    *,
    train_ids: Ids | None = None,
    seq_len: int = DynamicConfig.seq_len,
    learning_rate: float = DynamicConfig.learning_rate,
    decay: float = DynamicConfig.decay,
) -> DynamicScore:
    """Scores a text by weights that learn from each of its segments after it was scored.

    The rule is that of Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models", with their RMS
    normalisation and decay: with g the gradient of a segment's nats over seq_len, r the root mean square of such
    gradients and m the mean of r over all weights,

        w += -learning_rate g / (r + 0.1 m) + min(decay r / m, 1) (w_at_first - w).

    So weights move by about the learning rate, whatever the scale of their gradients, and those that the text speaks
    of most are drawn back to what training made of them most. What is carried from segment to segment is the recurrent
    state; gradients reach back to the segment's beginning.

    Args:
        model: the model; nothing is dropped.
        params: its parameters, which stay as they are.
        ids: [N] integer in [0, V), N >= 2.
        train_ids: [M] integer in [0, V), M >= 2, what the model was trained on, to measure r on beforehand as the paper
            does; 10,000 characters of it are read, in stretches spread over it. The measuring goes on with the text
            itself, as far as it was read, so that no weight moves far that training had at rest; without train_ids it
            begins there, which helps a little less, at first above all.
        seq_len: characters per segment, at most 4000. Shorter ones adapt sooner and take longer.
        learning_rate: 0 gives static scores.
        decay: 0 never draws back; 1 or more forgets at once.

    Returns:
        The scores, those of the weights as they were beside them, and the weights after the text.

    Raises:
        UserError: fewer than two characters, a number out of range, or scores that are not finite.
        ValueError: ids that are not [N] integers in [0, V).
    """
    piece, params = _check_ids(model, ids), on_one_device(params)
    learning = DynamicConfig(seq_len=seq_len, learning_rate=learning_rate, decay=decay)
    state, rates = _start(model, params, train_ids, learning, top=0)
    found = list(_adapt(model, params, state, rates, [piece], separator=None, top=0, seq_len=seq_len))
    after = found[-1][0].params
    if not _are_finite(after):
        raise _astray(rates, len(piece))
    nats, static_nats = (
        np.concatenate([getattr(scores, kind).nats for _, scores in found])[1:] for kind in DynamicPiece._fields
    )
    return DynamicScore(nats, static_nats, after)


def dynamic_score_pieces(
    model: CharLSTM,
    params: Params,
    pieces: Iterable[np.ndarray],
    *,
    separator: np.ndarray | None = None,
    top: int = 0,
    train_ids: Ids | None = None,
    seq_len: int = DynamicConfig.seq_len,
    learning_rate: float = DynamicConfig.learning_rate,
    decay: float = DynamicConfig.decay,
) -> Iterator[DynamicPiece]:
    """Scores a text that comes in pieces, as `dynamic_score` does, in memory that does not grow with it.

    A document is read from an empty recurrent state, but by the weights that the documents before it left. A segment
    ends with its document; as much as it is shorter, the weights move less. The first character of a document is
    scored, and nothing is learned from it, as in training.

    Args:
        model: the model; nothing is dropped.
        params: its parameters, which stay as they are.
        pieces: [n] integer in [0, V) each, of any lengths, which do not matter to the result.
        separator: ids that end a document; see `charjax.score_pieces`.
        top: K, how many of the likeliest characters to tell; at most V are told.
        train_ids: see `dynamic_score`.
        seq_len: see `dynamic_score`.
        learning_rate: see `dynamic_score`.
        decay: see `dynamic_score`.

    Yields:
        The text in order, every character once.

    Raises:
        UserError: an empty separator, a number out of range, or scores that are not finite.
        ValueError: ids out of range.
    """
    learning, top = DynamicConfig(seq_len=seq_len, learning_rate=learning_rate, decay=decay), min(top, model.vocab_size)
    params = on_one_device(params)
    state, rates = _start(model, params, train_ids, learning, top=top)
    for _, piece in _adapt(model, params, state, rates, pieces, separator=separator, top=top, seq_len=seq_len):
        yield piece


def _check_ids(model: CharLSTM, ids: np.ndarray, name: str = "ids") -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be [N] integers, not {ids.shape} {ids.dtype}")
    if len(ids) < 2:
        raise UserError(f"{name} hold {len(ids)} characters, which leaves nothing to predict; give at least 2")
    if ids.min() < 0 or ids.max() >= model.vocab_size:
        raise ValueError(f"{name} must lie in [0, {model.vocab_size}), not in [{ids.min()}, {ids.max()}]")
    return ids


def _start(
    model: CharLSTM, params: Params, train_ids: Ids | None, learning: DynamicConfig, *, top: int
) -> tuple[_Adaptation, _Rates]:
    """Measures gradients on a training text, if there is one: -> (the state before a text, how weights move)."""
    rates = _Rates(np.float32(learning.learning_rate), np.float32(learning.decay))
    # Each call takes the state's memory over: the caller's weights are not to be lost with it.
    weights = jax.tree.map(functools.partial(jnp.array, dtype=jnp.float32), params)
    squares = jax.tree.map(jnp.zeros_like, weights)
    state = _Adaptation(weights, init_carry(model, 1), squares, jnp.zeros(()))
    if train_ids is not None:
        stretches = ((_check_ids(model, ids, "train_ids"), begins) for ids, begins in _stretches(train_ids))
        # The same program, whose weights stand still.
        still = _Rates(np.float32(0), np.float32(0))
        for block in segment_blocks(stretches, seq_len=learning.seq_len, size=_segments_per_call(learning.seq_len)):
            state, _ = _read_block(model, params, state, block, still, top=top)
        if not _are_finite(state.squares):
            raise UserError("the model's gradients on its training text are not numbers; train it anew")
    return state, rates


def _stretches(ids: Ids) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of a text to measure on, each a document: (ids [n], which begin a document [n])."""
    length = MEASURED // STRETCHES
    parts = (
        [ids[:]]
        if len(ids) <= MEASURED
        else [ids[begin : begin + length] for begin in np.linspace(0, len(ids) - length, STRETCHES).astype(int)]
    )
    for part in parts:
        yield part, np.arange(len(part)) == 0


def _segments_per_call(seq_len: int) -> int:
    return max(1, CHUNK // seq_len)


def _are_finite(weights: Params) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(weights))


def _astray(rates: _Rates, characters: int) -> UserError:
    return UserError(
        f"the weights went astray within {characters:,} characters, and their scores are not finite: choose a "
        f"learning rate below {float(rates.learning_rate):g}"
    )


def _adapt(
    model: CharLSTM,
    params: Params,
    state: _Adaptation,
    rates: _Rates,
    pieces: Iterable[np.ndarray],
    *,
    separator: np.ndarray | None,
    top: int,
    seq_len: int,
) -> Iterator[tuple[_Adaptation, DynamicPiece]]:
    """Reads a text: yields (the state, whose memory the next step takes over, characters and their scores)."""
    waiting: list[ScoredPiece] = []

    def text() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for piece in score_pieces(model, params, pieces, separator=separator, top=top):
            if not np.isfinite(piece.nats).all():
                raise UserError("the model's predictions are not numbers; train it anew")
            waiting.append(piece)
            yield piece.ids, piece.begins

    read = 0
    for block in segment_blocks(text(), seq_len=seq_len, size=_segments_per_call(seq_len)):
        state, scores = _read_block(model, params, state, block, rates, top=top)
        nats, top_ids, top_probs = (np.asarray(values)[block.rows, block.columns] for values in scores)
        read += len(nats)
        if not np.isfinite(nats).all():
            raise _astray(rates, read)
        static = ScoredPiece(*(np.concatenate(values) for values in zip(*waiting, strict=True)))
        waiting[:] = [ScoredPiece(*(values[len(nats) :] for values in static))]
        static = ScoredPiece(*(values[: len(nats)] for values in static))
        yield state, DynamicPiece(ScoredPiece(static.ids, nats, static.begins, top_ids, top_probs), static)


def _read_block(
    model: CharLSTM, params: Params, state: _Adaptation, block: SegmentBlock, rates: _Rates, *, top: int
) -> tuple[_Adaptation, _Scores]:
    return _read_segments(
        model, params, state, block.windows, block.counts, block.fresh, np.int32(block.number), rates, top=top
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="top", donate_argnames="state")
def _read_segments(
    model: CharLSTM,
    params: Params,
    state: _Adaptation,
    windows: Array,
    counts: Array,
    fresh: Array,
    number: Array,
    rates: _Rates,
    *,
    top: int,
) -> tuple[_Adaptation, _Scores]:
    """Reads the first `number` of the segments: -> (the state after them, scores); see `SegmentBlock`."""

    def one(row: Array, loop: tuple[_Adaptation, _Scores]) -> tuple[_Adaptation, _Scores]:
        state, scores = loop
        state, found = _read_segment(model, params, state, windows[row], counts[row], fresh[row], rates, top)
        return state, jax.tree.map(lambda values, value: values.at[row].set(value), scores, found)

    empty = _Scores(
        jnp.zeros(windows.shape),
        jnp.zeros((*windows.shape, top), jnp.int32),
        jnp.zeros((*windows.shape, top)),
    )
    return jax.lax.fori_loop(0, number, one, (state, empty))


def _read_segment(
    model: CharLSTM,
    first: Params,
    state: _Adaptation,
    ids: Array,
    count: Array,
    fresh: Array,
    rates: _Rates,
    top: int,
) -> tuple[_Adaptation, _Scores]:
    """Scores a window [T + 1], then learns from the first `count` of its labels."""
    seq_len = len(ids) - 1
    before = jax.tree.map(lambda values: jnp.where(fresh, jnp.zeros_like(values), values), state.carry)

    reader = _segment_reader(model)

    def loss(params: Params) -> tuple[Array, tuple[Array, Carry]]:
        logits, carry = reader.apply({"params": params}, ids[None, :-1], before)
        nats = cross_entropy(logits[0], ids[1:])
        return jnp.sum(jnp.where(jnp.arange(seq_len) < count, nats, 0.0)) / seq_len, (logits[0], carry)

    grads, (logits, carry) = jax.grad(loss, has_aux=True)(state.params)
    # Of a document's first character the model says what it says of an empty state.
    logits = jnp.concatenate([state.params["head"]["bias"][None], logits])
    ranked, top_ids = jax.lax.top_k(jax.nn.log_softmax(logits), top)
    scores = _Scores(cross_entropy(logits, ids), top_ids, jnp.exp(ranked))

    # A segment of no labels has no gradient, and is none to count.
    segments = jnp.minimum(state.segments + (count > 0), _MOST_SEGMENTS)
    weight = (count > 0) / jnp.maximum(segments, 1.0)
    squares = jax.tree.map(lambda mean, grad: mean + weight * (grad**2 - mean), state.squares, grads)
    moved = _step(first, state.params, grads, jax.tree.map(jnp.sqrt, squares), rates, count / seq_len)
    return _Adaptation(moved, carry, squares, segments), scores


def _segment_reader(model: CharLSTM) -> CharLSTM:
    """The model, computed as is fastest for one stream of weights that change with every segment."""
    # What packs the weights for a long sequence would pack them for each segment anew.
    on_processor = model.implementation is None and target_platform() == "cpu"
    return model.clone(implementation="scan") if on_processor else model


def _step(first: Params, params: Params, grads: Params, rms: Params, rates: _Rates, share: Array) -> Params:
    """The rule that `dynamic_score` gives, for a segment of a share of T labels."""
    leaves = jax.tree.leaves(rms)
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    mean = jnp.maximum(mean, _LEAST_GRADIENT)

    def move(first: Array, now: Array, grad: Array, rms: Array) -> Array:
        drawn_back = jnp.minimum(share * rates.decay * rms / mean, 1.0) * (first - now)
        return now - rates.learning_rate * grad / (rms + EPSILON * mean) + drawn_back

    return jax.tree.map(move, first, params, grads, rms)
