"""The exact loss of a model on a whole text."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from charjax.losses import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry
from charjax.sharding import DATA_AXIS, OVER_STREAMS, REPLICATED, make_mesh, put_replicated, put_streams
from charjax.streams import Streams, cut_window, make_streams, num_windows
from charjax.types import Array, Params

EVAL_WINDOW = 100
EVAL_BURN_IN = 200
EVAL_MAX_STREAMS = 256


class EvalMetrics(NamedTuple):
    """Sums of each window over all streams: `nats` [W] float32 and `chars` [W] int32."""

    nats: Array
    chars: Array


class EvalStep(Protocol):
    """(params, streams) -> metrics of the whole split."""

    def __call__(self, params: Params, streams: Streams) -> EvalMetrics:
        """Reads the streams from their beginning with a state of its own."""
        ...


def make_eval_step(model: CharLSTM, *, seq_len: int, mesh: Mesh | None = None) -> EvalStep:
    """Builds the jitted evaluation of whole streams, read from their beginning with a state of their own.

    Args:
        model: the model; nothing is dropped.
        seq_len: characters per window, which bounds the memory; the result does not depend on it.
        mesh: devices; by default all.

    Returns:
        (params, streams) -> EvalMetrics, one sum per window, for the host to add up in float64.
    """

    def run(params: Params, streams: Streams) -> EvalMetrics:
        def one(carry: Carry, cursor: Array) -> tuple[Carry, EvalMetrics]:
            window = cut_window(streams, cursor, seq_len)
            logits, carry = model.apply({"params": params}, window.inputs, carry)
            nats = jnp.sum(cross_entropy(logits, window.labels) * window.counts)
            return carry, EvalMetrics(*jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS))

        carry = jax.lax.pcast(init_carry(model, streams.ids.shape[0]), DATA_AXIS, to="varying")
        return jax.lax.scan(one, carry, jnp.arange(num_windows(streams, seq_len)))[1]

    sharded = jax.shard_map(run, mesh=mesh or make_mesh(), in_specs=(REPLICATED, OVER_STREAMS), out_specs=REPLICATED)
    return jax.jit(sharded)


def make_evaluator(model: CharLSTM, ids: np.ndarray, *, mesh: Mesh | None = None) -> "Evaluator":
    """Lays a text out for evaluation, once for many evaluations."""
    mesh = mesh or make_mesh()
    # Enough streams to fill the machine, few enough that reading each one's burn-in costs about a tenth.
    wanted = min(EVAL_MAX_STREAMS, max(1, (len(ids) - 1) // (10 * EVAL_BURN_IN)))
    batch_size = -(-wanted // mesh.size) * mesh.size
    streams = make_streams(ids, batch_size=batch_size, seq_len=EVAL_WINDOW, burn_in=EVAL_BURN_IN)
    return Evaluator(make_eval_step(model, seq_len=EVAL_WINDOW, mesh=mesh), put_streams(streams, mesh), mesh)


class Evaluator(NamedTuple):
    """params -> nats per character over a text; see `evaluate`."""

    eval_step: EvalStep
    streams: Streams
    mesh: Mesh

    def __call__(self, params: Params) -> float:
        """Mean nats per character."""
        # NumPy's arrays, for its 64-bit sums: jax's would stay at 32 bits.
        metrics = jax.device_get(self.eval_step(put_replicated(params, self.mesh), self.streams))
        return float(np.sum(metrics.nats, dtype=np.float64) / np.sum(metrics.chars, dtype=np.int64))


def evaluate(model: CharLSTM, params: Params, ids: np.ndarray, *, mesh: Mesh | None = None) -> float:
    """The model's loss on a text: mean -log p(character | those before it), every character but the first once.

    The text is read as many streams side by side. Each but the first begins 200 characters early, uncounted, to warm
    its state up, so that the result is that of one pass from the beginning but for what the state remembers
    longer than that.

    Args:
        model: the model.
        params: its parameters.
        ids: [N] integer, N >= 2.
        mesh: devices; by default all.

    Returns:
        Nats per character; exp of it is the perplexity, divided by ln 2 it is bits per character.

    Raises:
        UserError: fewer than two characters.
    """
    return make_evaluator(model, ids, mesh=mesh)(params)
