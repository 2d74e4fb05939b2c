"""The update step of dynamic evaluation, which scores a segment and then takes a gradient step on it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.analysis.documents import SegmentBlock
from charjax.analysis.score import Scores, judge
from charjax.array_types import Array, Params
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry
from charjax.ops.lstm.target import target_platform

# Relative to the mean gradient. At 0.01, weights with near-zero gradients, such as those of a rare character, moved so
# far at its first occurrence that some of the following characters cost 60 nats.
EPSILON = 0.1
# Mean gradients are clamped to at least this, so that text predicted with certainty leaves the weights unchanged.
_LEAST_GRADIENT = 1e-8
# Beyond this many segments, the mean of squared gradients gradually forgets old ones; otherwise, float32 would be too
# coarse to register new ones.
_MOST_SEGMENTS = 1e6


class Rates(NamedTuple):
    """The learning rate and decay of the weight updates, as arrays so that new values do not trigger recompilation.

    Attributes:
        learning_rate: [] float32, eta.
        decay: [] float32, lambda.
    """

    learning_rate: np.float32
    decay: np.float32


class Adaptation(NamedTuple):
    """The state of dynamic evaluation between segments.

    Attributes:
        params: the current weights.
        carry: the recurrent state.
        squares: the mean of the squared gradients, a pytree like the weights.
        segments: [] float32, the number of segments averaged so far.
    """

    params: Params
    carry: Carry
    squares: Params
    segments: Array


def init_adaptation(model: CharLSTM, params: Params) -> Adaptation:
    """Returns the initial state. The weights are copied, because each step donates its state's memory."""
    weights = jax.tree.map(functools.partial(jnp.array, dtype=jnp.float32), params)
    return Adaptation(weights, init_carry(model, 1), jax.tree.map(jnp.zeros_like, weights), jnp.zeros(()))


def adapt(
    model: CharLSTM, first: Params, state: Adaptation, block: SegmentBlock, rates: Rates, *, top: int
) -> tuple[Adaptation, Scores]:
    """Scores the segments of a block, updating the weights on each segment after scoring it.

    Args:
        model: the model.
        first: the original weights, which the updates decay towards.
        state: the state before the block; donated.
        block: S segments of T labels.
        rates: the learning rate and decay.
        top: K, the number of most likely characters to return.

    Returns:
        The state after the block and the scores [S, T + 1]: first that of each window's first character, as if it began
        a document, then those of the window's labels.
    """
    segments = block.windows, block.counts, block.fresh
    return _adapt(model, first, state, segments, np.int32(block.number), rates, top=top)


@functools.partial(jax.jit, static_argnums=0, static_argnames="top", donate_argnames="state")
def _adapt(
    model: CharLSTM,
    first: Params,
    state: Adaptation,
    segments: tuple[Array, Array, Array],
    number: Array,
    rates: Rates,
    *,
    top: int,
) -> tuple[Adaptation, Scores]:
    """Implements `adapt`; `segments` are a `SegmentBlock`'s `windows`, `counts` and `fresh`."""
    shape = segments[0].shape

    def one(row: Array, loop: tuple[Adaptation, Scores]) -> tuple[Adaptation, Scores]:
        state, scores = loop
        segment = jax.tree.map(lambda values: values[row], segments)
        state, found = _adapt_once(model, first, state, segment, rates, top)
        return state, jax.tree.map(lambda values, value: values.at[row].set(value), scores, found)

    empty = Scores(jnp.zeros(shape), jnp.zeros((*shape, top), jnp.int32), jnp.zeros((*shape, top)))
    return jax.lax.fori_loop(0, number, one, (state, empty))


def _adapt_once(
    model: CharLSTM, first: Params, state: Adaptation, segment: tuple[Array, Array, Array], rates: Rates, top: int
) -> tuple[Adaptation, Scores]:
    """Scores a segment's window [T + 1], then updates the weights on the first `count` of its labels."""
    ids, count, fresh = segment
    seq_len = len(ids) - 1
    before = jax.tree.map(lambda values: jnp.where(fresh, jnp.zeros_like(values), values), state.carry)
    reader = _segment_reader(model)

    def loss(params: Params) -> tuple[Array, tuple[Array, Carry]]:
        logits, carry = reader.apply({"params": params}, ids[None, :-1], before)
        nats = cross_entropy(logits[0], ids[1:])
        return jnp.sum(jnp.where(jnp.arange(seq_len) < count, nats, 0.0)) / seq_len, (logits[0], carry)

    grads, (logits, carry) = jax.grad(loss, has_aux=True)(state.params)
    # A document's first character is predicted from a zero state, i.e. by the bias alone.
    scores = judge(jnp.concatenate([state.params["head"]["bias"][None], logits]), ids, top)

    # A segment without labels has no gradient and does not count.
    segments = jnp.minimum(state.segments + (count > 0), _MOST_SEGMENTS)
    weight = (count > 0) / jnp.maximum(segments, 1.0)
    squares = jax.tree.map(lambda mean, grad: mean + weight * (grad**2 - mean), state.squares, grads)
    moved = _move(first, state.params, grads, jax.tree.map(jnp.sqrt, squares), rates, count / seq_len)
    return Adaptation(moved, carry, squares, segments), scores


def _segment_reader(model: CharLSTM) -> CharLSTM:
    """Returns the model with the implementation that is fastest for a single sequence and ever-changing weights."""
    # The native implementation would repack the weights for every segment.
    native = model.implementation is None and target_platform() == "cpu"
    return model.clone(implementation="scan") if native else model


def _move(first: Params, params: Params, grads: Params, rms: Params, rates: Rates, share: Array) -> Params:
    """Applies the update rule of `dynamic_score` to the gradient of a segment with `share` times T labels."""
    leaves = jax.tree.leaves(rms)
    mean = sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    mean = jnp.maximum(mean, _LEAST_GRADIENT)

    def move(first: Array, now: Array, grad: Array, rms: Array) -> Array:
        decayed = jnp.minimum(share * rates.decay * rms / mean, 1.0) * (first - now)
        return now - rates.learning_rate * grad / (rms + EPSILON * mean) + decayed

    return jax.tree.map(move, first, params, grads, rms)
