"""Computes a model's exact loss on the full text."""

import functools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Array, Ids, Params
from charjax.data.batching import SequenceLayout, Streams, cut_window, windows_held
from charjax.data.prefetch import STREAM_SPECS, Prefetcher
from charjax.distributed.mesh import DATA_AXIS, OVER_BATCH, REPLICATED, checked_mesh, put_replicated, put_streams
from charjax.errors import check_type, checked_whole
from charjax.generation.inputs import check_shapes, checked_params, checked_text
from charjax.host.jax_modes import in_default_modes
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM, check_model, init_carry
from charjax.ops.lstm.api import takes_varying

EVAL_WINDOW = 100
EVAL_BURN_IN = 200
EVAL_MAX_SEQUENCES = 256

# Number of compiled steps cached in the process, so that evaluating the same model again compiles nothing.
STEPS_KEPT = 16


class EvalMetrics(NamedTuple):
    """Sums over all sequences for each of C windows: `nats` [C] float32 and `chars` [C] int32."""

    nats: Array
    chars: Array


class EvalStep(NamedTuple):
    """(params, streams, carry) -> (metrics, carry); see `make_eval_step`.

    Attributes:
        jitted: the jitted function, which takes the same arguments.
        model: the model.
        mesh: the devices.
    """

    jitted: Any
    model: CharLSTM
    mesh: Mesh

    @in_default_modes
    def __call__(self, params: Params, streams: Streams, carry: Carry | None = None) -> tuple[EvalMetrics, Carry]:
        """Evaluates all windows of the streams, by default from a zero carry; the carry passed in is donated.

        Raises:
            UserError: params do not match the model, or an argument has the wrong type.
            ValueError: the streams were made for a different seq_len, or the carry for a different model or batch size.
        """
        check_shapes(self.model, params)
        check_type("streams", streams, Streams, "make them with make_streams")
        if carry is None:
            carry = put_streams(zero_carry(self.model, streams.ids.shape[0]), self.mesh)
        check_type("carry", carry, tuple, "make one with init_carry")
        return self.jitted(params, streams, carry)


def zero_carry(model: CharLSTM, batch_size: int) -> Carry:
    """Returns the values of `init_carry` as NumPy arrays, which are created and split without compiling anything."""
    shapes = jax.eval_shape(lambda: init_carry(model, batch_size))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def make_eval_step(model: CharLSTM, *, seq_len: int, mesh: Mesh | None = None) -> EvalStep:
    """Builds a jitted step that evaluates the text all at once or chunk by chunk.

    Args:
        model: the model; dropout is off.
        seq_len: characters per window; it limits memory use and does not affect the result.
        mesh: devices to use; all by default.

    Returns:
        (params, streams, carry) -> (EvalMetrics, carry): one sum per window, to be added up in float64 on the host, and
        the carry after the last window, to pass in with the next chunk. The carry passed in is donated.

    Raises:
        UserError: an argument has the wrong type or is out of range, or the mesh was not made by `make_mesh`.

    Examples:
        >>> import jax, numpy as np
        >>> from charjax import CharLSTM, init_params, make_eval_step, make_mesh, make_streams, put_streams
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1)
        >>> eval_step = make_eval_step(model, seq_len=10, mesh=mesh)
        >>> streams = make_streams(np.arange(41, dtype=np.uint8) % 5, batch_size=2, seq_len=10)
        >>> metrics, carry = eval_step(init_params(jax.random.key(0), model), put_streams(streams, mesh))
        >>> metrics.chars.tolist()
        [20, 20]
    """
    check_model(model)
    mesh = checked_mesh(mesh)
    return EvalStep(_jitted_step(model, checked_whole("seq_len", seq_len), mesh), model, mesh)


@functools.lru_cache(maxsize=STEPS_KEPT)
def _jitted_step(model: CharLSTM, seq_len: int, mesh: Mesh) -> Any:
    """Returns `EvalStep.jitted`."""
    run = functools.partial(run_windows, model, seq_len)
    in_specs, out_specs = (REPLICATED, STREAM_SPECS, OVER_BATCH), (REPLICATED, OVER_BATCH)
    checked = takes_varying(model.implementation)
    sharded = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=checked)
    placed = (NamedSharding(mesh, REPLICATED), NamedSharding(mesh, OVER_BATCH))
    return jax.jit(sharded, donate_argnums=2, out_shardings=placed)


def run_windows(
    model: CharLSTM, seq_len: int, params: Params, streams: Streams, carry: Carry
) -> tuple[EvalMetrics, Carry]:
    """Evaluates one device's sequences; runs under shard_map. The arguments and result match `EvalStep`."""

    def one(carry: Carry, cursor: Array) -> tuple[Carry, EvalMetrics]:
        window = cut_window(streams, cursor, seq_len)
        logits, carry = model.apply({"params": params}, window.inputs, carry)
        nats = jnp.sum(cross_entropy(logits, window.labels) * window.counts)
        return carry, EvalMetrics(*jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS))

    cursors = streams.begin + jnp.arange(windows_held(streams, seq_len))
    carry, metrics = jax.lax.scan(one, carry, cursors)
    return metrics, carry


def make_evaluator(model: CharLSTM, ids: Ids, *, mesh: Mesh | None = None, budget: int | None = None) -> "Evaluator":
    """Prepares an evaluator for repeated use on the same text.

    Args:
        model: the model.
        ids: [N] integer, N >= 2, in memory or in a file.
        mesh: devices to use; all by default.
        budget: maximum number of bytes of text to keep in memory at once; see `Prefetcher`.
    """
    mesh = checked_mesh(mesh)
    feed = Prefetcher(ids, evaluation_layout(len(ids), mesh.size), mesh, budget=budget)
    return Evaluator(make_eval_step(model, seq_len=EVAL_WINDOW, mesh=mesh), feed)


def evaluation_layout(length: int, devices: int) -> SequenceLayout:
    """Returns the layout that divides `length` characters into a multiple of `devices` sequences."""
    # Enough sequences to keep the machine busy, but few enough that burn-in is about a tenth of the work.
    wanted = min(EVAL_MAX_SEQUENCES, max(1, (length - 1) // (10 * EVAL_BURN_IN)))
    batch_size = -(-wanted // devices) * devices
    return SequenceLayout.of(length, batch_size=batch_size, seq_len=EVAL_WINDOW, burn_in=EVAL_BURN_IN)


class Evaluator(NamedTuple):
    """Maps params to nats per character; see `evaluate`. As a context manager, it stops prefetching on exit."""

    eval_step: EvalStep
    feed: Prefetcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.feed.__exit__(*exception)

    @in_default_modes
    def __call__(self, params: Params) -> float:
        """Returns the mean nats per character."""
        params = put_replicated(params, self.eval_step.mesh)
        sums: list[EvalMetrics] = []
        carry = None
        for window in range(0, self.feed.windows, self.feed.chunk_windows):
            metrics, carry = self.eval_step(params, self.feed.chunk_at(window), carry)
            # At most one chunk is dispatched ahead, to limit memory use.
            sums[-1:] = jax.device_get(sums[-1:])
            sums.append(metrics)
        # Summed in NumPy, because JAX would sum in 32 bits.
        nats, chars = (np.concatenate(parts)[: self.feed.windows] for parts in zip(*jax.device_get(sums), strict=True))
        return float(np.sum(nats, dtype=np.float64) / np.sum(chars, dtype=np.int64))


@in_default_modes
def evaluate(
    model: CharLSTM, params: Params, ids: Ids, *, mesh: Mesh | None = None, budget: int | None = None
) -> float:
    """Returns a model's loss on the text: the mean of -log p(character | all preceding ones), over all but the first.

    The text is split into sequences that are processed in parallel. Every sequence but the first starts with a burn-in
    of 200 characters, which set up its recurrent state and are not counted. The result therefore matches a single pass
    from the beginning, except for anything that the state remembers from further back.

    Args:
        model: the model.
        params: its parameters.
        ids: [N] integer, N >= 2, in memory or in a file.
        mesh: devices to use; all by default.
        budget: maximum number of bytes of text to keep in memory at once, unlimited by default; it does not affect the
            result.

    Returns:
        The loss in nats per character; its exponential is the perplexity, and dividing it by ln 2 gives bits per
        character.

    Raises:
        UserError: ids are not [N] integers in [0, V), there are fewer than two of them, params do not match the model,
            or the mesh was not made by `make_mesh`.

    Examples:
        >>> import jax, numpy as np
        >>> from charjax import CharLSTM, evaluate, init_params, make_mesh
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1)
        >>> params, mesh = init_params(jax.random.key(0), model), make_mesh(jax.devices()[:1])
        >>> loss = evaluate(model, params, np.arange(41, dtype=np.uint8) % 5, mesh=mesh)
        >>> round(loss, 1)
        1.6
    """
    params = checked_params(model, params)
    ids = checked_text(ids, model.vocab_size)
    budget = None if budget is None else checked_whole("budget", budget, least=0)
    with make_evaluator(model, ids, mesh=mesh, budget=budget) as evaluator:
        return evaluator(params)
