"""Dynamic evaluation: a text is scored while the weights learn from what was scored before.

A text repeats itself: its names, its words, its style. Dynamic evaluation takes a step of gradient descent after every
segment, so that what was read helps with what comes (Mikolov et al. 2010). Each segment is scored by weights that have
not seen it, and the scores say as honestly as static ones how well the text was predicted.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.errors import UserError
from charjax.losses import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry
from charjax.types import Array

Params = Any  # flax's nested dict of arrays

# What helped most, or nearly, with a model of 256 units trained on Shakespeare's plays, on parts that it had not seen.
SEQ_LEN = 20
LEARNING_RATE = 6e-4
DECAY = 3e-3
# Of the mean gradient; what is seen least is not thrown about.
EPSILON = 0.01
# Characters per call, which bound the memory.
CHUNK = 4000


class DynamicScore(NamedTuple):
    """What dynamic evaluation finds.

    Attributes:
        nats: [N - 1] float32, -log p(character | all before it) of every character but the first.
        static_nats: [N - 1] float32, the same with the weights as they were.
        params: the weights after the text.
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


class Rates(NamedTuple):
    """How the weights move; arrays, so that another value does not compile anew.

    Attributes:
        learning_rate: [] float32, eta.
        decay: [] float32, lambda.
        measure: [] float32, 1 to measure gradients as they come, 0 to leave the measure as it is.
    """

    learning_rate: Array
    decay: Array
    measure: Array


class Adaptation(NamedTuple):
    """Where the reading of a text stands.

    Attributes:
        params: the weights now.
        carry: the recurrent state that they left.
        static_carry: the recurrent state that the weights leave as they were.
        squares: sums of squared gradients, in the shape of the weights.
        segments: [] float32, how many were summed.
    """

    params: Params
    carry: Carry
    static_carry: Carry
    squares: Params
    segments: Array


def dynamic_score(
    model: CharLSTM,
    params: Params,
    ids: np.ndarray,
    *,
    train_ids: np.ndarray | None = None,
    seq_len: int = SEQ_LEN,
    learning_rate: float = LEARNING_RATE,
    decay: float = DECAY,
) -> DynamicScore:
    """Scores a text by weights that learn from each of its segments after it was scored.

    The rule is that of Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models", with their RMS
    normalisation and decay: with g the gradient of a segment's mean loss, r the root mean square of such gradients and
    m the mean of r over all weights,

        w += -learning_rate g / (r + 0.01 m) + min(decay r / m, 1) (w_at_first - w).

    So weights move by about the learning rate, whatever the scale of their gradients, and those that the text speaks
    of most are drawn back to what training made of them most. What is carried from segment to segment is the recurrent
    state; gradients reach back to the segment's beginning.

    Args:
        model: the model; nothing is dropped.
        params: its parameters, which stay as they are.
        ids: [N] integer, N >= 2; read in pieces, so that device memory does not grow with N.
        train_ids: [M] integer, M >= 2, a text to measure r on beforehand, best some 20,000 characters of what the model
            was trained on. By default r is measured on the text itself as far as it was read, which helps a little
            less, at first above all.
        seq_len: characters per segment. Shorter ones adapt sooner and take longer.
        learning_rate: 0 gives static scores.
        decay: 0 never draws back; 1 or more forgets at once.

    Returns:
        The scores, those of the weights as they were beside them, and the weights after the text.

    Raises:
        UserError: fewer than two characters, or a number out of range.
    """
    _check(seq_len=seq_len, learning_rate=learning_rate, decay=decay)
    params = jax.tree.map(jnp.asarray, params)
    squares, segments = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
    measure = Rates(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))
    rates = Rates(jnp.float32(learning_rate), jnp.float32(decay), jnp.ones(()))
    if train_ids is not None:
        # The same program, whose weights stand still.
        after, _ = _read(model, params, train_ids, squares, segments, measure, seq_len)
        squares, segments, rates = after.squares, after.segments, rates._replace(measure=jnp.zeros(()))
    after, nats = _read(model, params, ids, squares, segments, rates, seq_len)
    return DynamicScore(nats[0], nats[1], after.params)


def _check(*, seq_len: int, learning_rate: float, decay: float) -> None:
    if not isinstance(seq_len, int) or isinstance(seq_len, bool) or seq_len < 1:
        raise UserError(f"seq_len must be a whole number of at least 1, not {seq_len!r}")
    for name, value in (("learning_rate", learning_rate), ("decay", decay)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value <= 1e9):
            raise UserError(f"{name} must be at least 0 and finite, not {value!r}")


def _read(
    model: CharLSTM, params: Params, ids: np.ndarray, squares: Params, segments: Array, rates: Rates, seq_len: int
) -> tuple[Adaptation, np.ndarray]:
    """Reads a text piece by piece: -> (the state after it, nats [2, N - 1], dynamic and static)."""
    labels = len(ids) - 1
    if labels < 1:
        raise UserError(f"a text of {len(ids)} characters has nothing to predict; give at least 2")
    seq_len = min(seq_len, labels)
    size = max(1, CHUNK // seq_len) * seq_len
    # Each call takes the state's memory over: the caller's weights are not to be lost with it.
    state = Adaptation(
        jax.tree.map(jnp.copy, params), init_carry(model, 1), init_carry(model, 1), squares, jnp.copy(segments)
    )
    nats = np.empty((2, labels), np.float32)
    for begin in range(0, labels, size):
        piece = np.asarray(ids[begin : begin + size + 1])
        count = len(piece) - 1
        padded = np.pad(piece, (0, size - count))
        state, piece_nats = _read_piece(model, params, state, padded, np.int32(count), rates, seq_len=seq_len)
        nats[:, begin : begin + count] = np.asarray(piece_nats)[:, :count]
    return state, nats


@functools.partial(jax.jit, static_argnums=0, static_argnames="seq_len", donate_argnames="state")
def _read_piece(
    model: CharLSTM, params: Params, state: Adaptation, ids: Array, count: Array, rates: Rates, *, seq_len: int
) -> tuple[Adaptation, Array]:
    """Reads ids [S + 1], of whose S labels the first `count` are text: -> (the state after them, nats [2, S])."""
    logits, static_carry = model.apply({"params": params}, ids[None, :-1], state.static_carry)
    static_nats = cross_entropy(logits[0], ids[1:])

    def one(segment: Array, loop: tuple[Adaptation, Array]) -> tuple[Adaptation, Array]:
        state, nats = loop
        position = segment * seq_len
        window = jax.lax.dynamic_slice_in_dim(ids, position, seq_len + 1)
        counts = position + jnp.arange(seq_len) < count
        state, segment_nats = _read_segment(model, params, state, window, counts, rates)
        return state, jax.lax.dynamic_update_slice_in_dim(nats, segment_nats, position, 0)

    segments = -(-count // seq_len)
    state, nats = jax.lax.fori_loop(0, segments, one, (state, jnp.zeros_like(static_nats)))
    return state._replace(static_carry=static_carry), jnp.stack([nats, static_nats])


def _read_segment(
    model: CharLSTM, params: Params, state: Adaptation, ids: Array, counts: Array, rates: Rates
) -> tuple[Adaptation, Array]:
    """Scores ids [T + 1], then learns from those labels that count [T]: -> (the state after them, nats [T])."""

    def loss(params: Params) -> tuple[Array, tuple[Array, Carry]]:
        logits, carry = model.apply({"params": params}, ids[None, :-1], state.carry)
        nats = cross_entropy(logits[0], ids[1:])
        return jnp.mean(nats * counts), (nats, carry)

    grads, (nats, carry) = jax.grad(loss, has_aux=True)(state.params)
    squares = jax.tree.map(lambda sums, grad: sums + rates.measure * grad**2, state.squares, grads)
    segments = state.segments + rates.measure
    moved = _step(params, state.params, grads, jax.tree.map(lambda sums: jnp.sqrt(sums / segments), squares), rates)
    return state._replace(params=moved, carry=carry, squares=squares, segments=segments), nats


def _step(first: Params, params: Params, grads: Params, rms: Params, rates: Rates) -> Params:
    """The rule that `dynamic_score` gives."""
    leaves = jax.tree.leaves(rms)
    # Where the text says nothing at all, nothing moves.
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves) + jnp.finfo(jnp.float32).tiny

    def move(at_first: Array, now: Array, grad: Array, rms: Array) -> Array:
        drawn_back = jnp.minimum(rates.decay * rms / mean, 1.0) * (at_first - now)
        return now - rates.learning_rate * grad / (rms + EPSILON * mean) + drawn_back

    return jax.tree.map(move, first, params, grads, rms)
