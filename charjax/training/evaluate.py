"""The exact loss of a model on a whole text."""

from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Array, Ids, Params
from charjax.data.batching import SequenceLayout, Streams, cut_window, windows_held
from charjax.data.prefetch import STREAM_SPECS, Prefetcher
from charjax.distributed.mesh import DATA_AXIS, OVER_BATCH, REPLICATED, make_mesh, put_replicated, put_streams
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry

EVAL_WINDOW = 100
EVAL_BURN_IN = 200
EVAL_MAX_STREAMS = 256


class EvalMetrics(NamedTuple):
    """Sums of each window over all streams: `nats` [C] float32 and `chars` [C] int32."""

    nats: Array
    chars: Array


class EvalStep(Protocol):
    """(params, streams, carry) -> (metrics, carry)."""

    def __call__(self, params: Params, streams: Streams, carry: Carry | None = None) -> tuple[EvalMetrics, Carry]:
        """Reads all windows of the streams; without a carry they are the first, read with a state of zeros."""
        ...


def make_eval_step(model: CharLSTM, *, seq_len: int, mesh: Mesh | None = None) -> EvalStep:
    """Builds the jitted evaluation of streams, whole or chunk after chunk, with a state of their own.

    Args:
        model: the model; nothing is dropped.
        seq_len: characters per window, which bounds the memory; the result does not depend on it.
        mesh: devices; by default all.

    Returns:
        (params, streams, carry) -> (EvalMetrics, carry): one sum per window, for the host to add up in float64, and the
        state after the last window, which the next chunk goes on from; the one passed in is donated.
    """
    mesh = mesh or make_mesh()

    def run(params: Params, streams: Streams, carry: Carry) -> tuple[EvalMetrics, Carry]:
        def one(carry: Carry, cursor: Array) -> tuple[Carry, EvalMetrics]:
            window = cut_window(streams, cursor, seq_len)
            logits, carry = model.apply({"params": params}, window.inputs, carry)
            nats = jnp.sum(cross_entropy(logits, window.labels) * window.counts)
            return carry, EvalMetrics(*jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS))

        cursors = streams.begin + jnp.arange(windows_held(streams, seq_len))
        carry, metrics = jax.lax.scan(one, carry, cursors)
        return metrics, carry

    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(REPLICATED, STREAM_SPECS, OVER_BATCH),
        out_specs=(REPLICATED, OVER_BATCH),
    )
    placed = (NamedSharding(mesh, REPLICATED), NamedSharding(mesh, OVER_BATCH))
    jitted = jax.jit(sharded, donate_argnums=2, out_shardings=placed)

    def eval_step(params: Params, streams: Streams, carry: Carry | None = None) -> tuple[EvalMetrics, Carry]:
        if carry is None:
            carry = put_streams(init_carry(model, streams.ids.shape[0]), mesh)
        return jitted(params, streams, carry)

    return eval_step


def make_evaluator(model: CharLSTM, ids: Ids, *, mesh: Mesh | None = None, budget: int | None = None) -> "Evaluator":
    """Lays a text out for evaluation, once for many evaluations.

    Args:
        model: the model.
        ids: [N] integer, N >= 2, in memory or in a file.
        mesh: devices; by default all.
        budget: bytes that may be held of the text at once, as `Prefetcher` has it.
    """
    mesh = mesh or make_mesh()
    # Enough streams to fill the machine, few enough that reading each one's burn-in costs about a tenth.
    wanted = min(EVAL_MAX_STREAMS, max(1, (len(ids) - 1) // (10 * EVAL_BURN_IN)))
    batch_size = -(-wanted // mesh.size) * mesh.size
    layout = SequenceLayout.of(len(ids), batch_size=batch_size, seq_len=EVAL_WINDOW, burn_in=EVAL_BURN_IN)
    feed = Prefetcher(ids, layout, mesh, budget=budget)
    return Evaluator(make_eval_step(model, seq_len=EVAL_WINDOW, mesh=mesh), feed, mesh)


class Evaluator(NamedTuple):
    """params -> nats per character over a text; see `evaluate`. A context manager that ends its reading ahead."""

    eval_step: EvalStep
    feed: Prefetcher
    mesh: Mesh

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.feed.__exit__(*exception)

    def __call__(self, params: Params) -> float:
        """Mean nats per character."""
        params = put_replicated(params, self.mesh)
        sums: list[EvalMetrics] = []
        carry = None
        for window in range(0, self.feed.windows, self.feed.chunk_windows):
            metrics, carry = self.eval_step(params, self.feed.chunk_at(window), carry)
            # One chunk is dispatched ahead, and no more: their memory would add up.
            sums[-1:] = jax.device_get(sums[-1:])
            sums.append(metrics)
        # NumPy's arrays, for its 64-bit sums: jax's would stay at 32 bits.
        nats, chars = (np.concatenate(parts)[: self.feed.windows] for parts in zip(*jax.device_get(sums), strict=True))
        return float(np.sum(nats, dtype=np.float64) / np.sum(chars, dtype=np.int64))


def evaluate(
    model: CharLSTM, params: Params, ids: Ids, *, mesh: Mesh | None = None, budget: int | None = None
) -> float:
    """The model's loss on a text: mean -log p(character | those before it), every character but the first once.

    The text is read as many streams side by side. Each but the first begins 200 characters early, uncounted, to warm
    its state up, so that the result is that of one pass from the beginning but for what the state remembers
    longer than that.

    Args:
        model: the model.
        params: its parameters.
        ids: [N] integer, N >= 2, in memory or in a file.
        mesh: devices; by default all.
        budget: bytes that may be held of the text at once, by default without a limit; the result is the same.

    Returns:
        Nats per character; exp of it is the perplexity, divided by ln 2 it is bits per character.

    Raises:
        UserError: fewer than two characters.
    """
    with make_evaluator(model, ids, mesh=mesh, budget=budget) as evaluator:
        return evaluator(params)
