"""Dynamic evaluation: scoring text while training continues on the part that has already been scored.

Names, words and style recur within a text. Dynamic evaluation takes a gradient step after every segment, so that what
has been read helps predict what follows (Mikolov et al. 2010). Each segment is scored with weights that have not been
trained on it yet, so the scores are as fair a measure of prediction as static ones.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.analysis.adaptation import Adaptation, Rates, adapt, init_adaptation
from charjax.analysis.documents import segment_blocks
from charjax.analysis.score import ScoredPiece, score_pieces
from charjax.array_types import Ids, Params
from charjax.config import DynamicConfig
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError, checked_whole
from charjax.generation.inputs import checked_ids, checked_params, checked_text
from charjax.host.jax_modes import in_default_modes
from charjax.model import CharLSTM

# Characters per call, which bounds memory.
CHUNK = 4000
# The number of characters of training text to measure gradients on, and the number of stretches, spread over the text,
# that they are taken from.
MEASURED, STRETCHES = 10_000, 20


class DynamicScore(NamedTuple):
    """The result of dynamic evaluation.

    Attributes:
        nats: [N - 1] float32, -log p(character | all before it) for every character but the first.
        static_nats: [N - 1] float32, the same with the original weights; see `charjax.score`.
        params: the weights after the last segment; with them, `generate` continues in the style of the text.

    Examples:
        >>> import numpy as np
        >>> from charjax import DynamicScore
        >>> found = DynamicScore(nats=np.array([0.5, 1.0]), static_nats=np.array([1.0, 2.0]), params={})
        >>> found.loss, found.static_loss
        (0.75, 1.5)
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
        """Mean nats per character with the original weights."""
        return float(np.mean(self.static_nats, dtype=np.float64))


class DynamicPiece(NamedTuple):
    """Consecutive characters of the text, scored twice; `ids` and `begins` are the same in both.

    Attributes:
        dynamic: their scores under the weights as updated on all earlier segments.
        static: their scores under the original weights.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, DynamicPiece, Vocab, dynamic_score_pieces, init_params
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> (piece,) = dynamic_score_pieces(model, params, [vocab.encode("coffee")], seq_len=5)
        >>> isinstance(piece, DynamicPiece), len(piece.dynamic.nats), len(piece.static.nats)
        (True, 6, 6)
    """

    dynamic: ScoredPiece
    static: ScoredPiece


@in_default_modes
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
    """Scores text, updating the weights on each segment after it has been scored.

    The update rule is that of Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models", with their RMS
    normalization and decay: if g is the gradient of a segment's total nats divided by seq_len, r the root mean square
    of these gradients so far, and m the mean of r over all weights, then

        w += -learning_rate g / (r + 0.1 m) + min(decay r / m, 1) (w_original - w).

    Weights therefore move by about the learning rate, whatever the scale of their gradients, and those with the largest
    gradients decay fastest towards their original values. The recurrent state is carried from segment to segment;
    gradients are truncated at the start of each segment.

    Args:
        model: the model; dropout is off.
        params: its parameters, which are not changed.
        ids: [N] integer in [0, V), N >= 2.
        train_ids: [M] integer in [0, V), M >= 2, the training text. If given, r is first measured on 10,000 characters
            from stretches spread over it, as in the paper. The text being scored then contributes to r as it is read,
            so that weights whose gradients were near zero on the training text do not move far. Without train_ids, r is
            measured on the scored text only, which gives slightly worse results, mostly at the start.
        seq_len: characters per segment, at most 4000. With shorter segments, the weights adapt sooner, but scoring
            takes longer.
        learning_rate: 0 gives static scores.
        decay: 0 disables decay; 1 or more forgets immediately.

    Returns:
        The scores, the scores under the original weights for comparison, and the weights after the last segment.

    Raises:
        UserError: ids are not at least two integers [N] in [0, V); params do not match the model; a number is out of
            range; or scores are not finite.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, dynamic_score, init_params
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> found = dynamic_score(model, params, vocab.encode("coffee" * 20), seq_len=5)
        >>> found.loss < found.static_loss
        True
    """
    params = on_one_device(checked_params(model, params))
    piece = _check_ids(model, ids)
    config = DynamicConfig(seq_len=seq_len, learning_rate=learning_rate, decay=decay)
    state = _start(model, params, train_ids, seq_len, top=0)
    found = list(_score(model, params, state, config, [piece], separator=None, top=0))
    after = found[-1][0].params
    if not _are_finite(after):
        raise _diverged(config, len(piece))
    nats, static_nats = (
        np.concatenate([getattr(scores, kind).nats for _, scores in found])[1:] for kind in DynamicPiece._fields
    )
    return DynamicScore(nats, static_nats, after)


@in_default_modes
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
    """Scores text that arrives in pieces, as `dynamic_score` does; memory use does not grow with its length.

    Each document is read from a zero recurrent state, but with the weights as updated on earlier documents. The last
    segment of a document may be shorter; the shorter it is, the less the weights move. A document's first character is
    scored but, as in training, the weights are not updated on it.

    Args:
        model: the model; dropout is off.
        params: its parameters, which are not changed.
        pieces: [n] integer in [0, V) each; how the text is split into pieces does not affect the result.
        separator: ids that end a document; see `charjax.score_pieces`.
        top: K, the number of most likely characters to return, at most V.
        train_ids: see `dynamic_score`.
        seq_len: see `dynamic_score`.
        learning_rate: see `dynamic_score`.
        decay: see `dynamic_score`.

    Yields:
        Consecutive pieces that together contain every character of the text exactly once.

    Raises:
        UserError: the separator is empty, ids are not in [0, V), params do not match the model, a number is out of
            range, or scores are not finite.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, dynamic_score_pieces, init_params
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> pieces = (vocab.encode(text) for text in ("cof", "fee"))
        >>> [vocab.decode(piece.dynamic.ids) for piece in dynamic_score_pieces(model, params, pieces, seq_len=5)]
        ['coffee']
    """
    config = DynamicConfig(seq_len=seq_len, learning_rate=learning_rate, decay=decay)
    params = on_one_device(checked_params(model, params))
    top = min(checked_whole("top", top, least=0), model.vocab_size)
    state = _start(model, params, train_ids, seq_len, top=top)
    for _, piece in _score(model, params, state, config, pieces, separator=separator, top=top):
        yield piece


def _check_ids(model: CharLSTM, ids: np.ndarray, name: str = "ids") -> np.ndarray:
    checked: np.ndarray = checked_ids(ids, model.vocab_size, "[N]", name)
    if len(checked) < 2:
        raise UserError(f"{name} must contain at least 2 characters, not {len(checked)}: the first predicts the second")
    return checked


def _start(model: CharLSTM, params: Params, train_ids: Ids | None, seq_len: int, *, top: int) -> Adaptation:
    """Returns the initial state, with gradient statistics from the training text if it is given."""
    state = init_adaptation(model, params)
    if train_ids is not None:
        train_ids = checked_text(train_ids, model.vocab_size, "train_ids")
        stretches = ((_check_ids(model, ids, "train_ids"), begins) for ids, begins in _stretches(train_ids))
        # With rates of zero, the same compiled program runs without moving the weights.
        still = Rates(np.float32(0), np.float32(0))
        for block in segment_blocks(stretches, seq_len=seq_len, size=_segments_per_call(seq_len)):
            state, _ = adapt(model, params, state, block, still, top=top)
        if not _are_finite(state.squares):
            raise UserError("the model's gradients on its training text are not finite; train the model again")
    return state


def _stretches(ids: Ids) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the parts of the training text to compute gradients on, each as a document: (ids [n], begins [n])."""
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


def _diverged(config: DynamicConfig, characters: int) -> UserError:
    return UserError(
        f"the weights diverged within {characters:,} characters, so the scores are not finite; use a learning rate "
        f"below {config.learning_rate:g}"
    )


def _score(
    model: CharLSTM,
    params: Params,
    state: Adaptation,
    config: DynamicConfig,
    pieces: Iterable[np.ndarray],
    *,
    separator: np.ndarray | None,
    top: int,
) -> Iterator[tuple[Adaptation, DynamicPiece]]:
    """Scores the text, yielding (state, scored characters); the next step donates the state."""
    rates = Rates(np.float32(config.learning_rate), np.float32(config.decay))
    waiting: list[ScoredPiece] = []

    def text() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for piece in score_pieces(model, params, pieces, separator=separator, top=top):
            if not np.isfinite(piece.nats).all():
                raise UserError("the model's predictions are not finite; train the model again")
            waiting.append(piece)
            yield piece.ids, piece.begins

    read = 0
    for block in segment_blocks(text(), seq_len=config.seq_len, size=_segments_per_call(config.seq_len)):
        state, scores = adapt(model, params, state, block, rates, top=top)
        nats, top_ids, top_probs = (np.asarray(values)[block.rows, block.columns] for values in scores)
        read += len(nats)
        if not np.isfinite(nats).all():
            raise _diverged(config, read)
        static = ScoredPiece(*(np.concatenate(values) for values in zip(*waiting, strict=True)))
        waiting[:] = [ScoredPiece(*(values[len(nats) :] for values in static))]
        static = ScoredPiece(*(values[: len(nats)] for values in static))
        yield state, DynamicPiece(ScoredPiece(static.ids, nats, static.begins, top_ids, top_probs), static)
