"""The training step: a pure function over a mesh of devices.

Streams of text lie on the devices; a step cuts its window there, so nothing crosses from the host. One code path
serves one device and many: the step runs under `shard_map`, every device takes its streams, and gradients meet in one
all-reduce after the time loop.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Array, Params
from charjax.data.batching import Streams, Window, cut_window, windows_held
from charjax.data.prefetch import STREAM_SPECS
from charjax.distributed.mesh import DATA_AXIS, REPLICATED, make_mesh
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM
from charjax.train_state import STATE_SPECS, TrainState, state_shardings


class TrainMetrics(NamedTuple):
    """Sums over the steps of one call.

    Attributes:
        nats: [] float32, sum of -log p(label).
        chars: [] int32, number of characters predicted; nats / chars is the loss.
        grad_norm: [] float32, mean global norm of the gradients before clipping.
        skipped: [] int32, steps that were skipped; the sums and the mean are over the others.
        skipped_in_a_row: [] int32, the most of them one after the other, those of calls before included.
    """

    nats: Array
    chars: Array
    grad_norm: Array
    skipped: Array
    skipped_in_a_row: Array


class TrainStep(Protocol):
    """(state, streams) -> (state, metrics); `num_steps` overrides `steps_per_call` without a new compilation."""

    def __call__(
        self, state: TrainState, streams: Streams, num_steps: int | None = None
    ) -> tuple[TrainState, TrainMetrics]:
        """Takes num_steps optimizer steps; the state passed in is donated and must not be used again."""
        ...


def make_train_step(
    model: CharLSTM,
    optimizer: optax.GradientTransformation,
    *,
    seq_len: int,
    mesh: Mesh | None = None,
    steps_per_call: int = 1,
    microbatches: int = 1,
) -> TrainStep:
    """Builds the jitted training step: truncated BPTT (Williams and Peng 1990) over the next window of every stream.

    The recurrent state is carried from window to window and zeroed when the streams start again. The gradient is
    that of the summed nats over B * T, whatever part of the window is padding, so every character weighs the same.

    A step whose loss or gradient is not finite changes neither parameters, optimizer nor recurrent state: it is as if
    its window were not there, but for `step`, `cursor` and the count of such steps.

    Args:
        model: the model.
        optimizer: the transformation that the state was initialised with.
        seq_len: T, characters per window; the streams must be made with the same.
        mesh: devices; by default all. The same mesh as for `init_train_state`.
        steps_per_call: optimizer steps that one call takes.
        microbatches: parts that each device computes its streams in, one after the other (gradient accumulation): what
            is kept for the backward pass takes so much less memory, and the result is the same but for rounding.

    Returns:
        (state, streams) -> (state, metrics), with `streams` from `make_streams`, put on the mesh by `put_streams`,
        or a chunk of them that holds the windows from the state's cursor on. It compiles once; the state passed in is
        donated.

    Raises:
        ValueError: when called, streams made for another seq_len.
    """
    mesh = mesh or make_mesh()

    def steps(state: TrainState, streams: Streams, num_steps: Array) -> tuple[TrainState, TrainMetrics]:
        windows_held(streams, seq_len)  # raises where they were made for another seq_len
        one = functools.partial(_one_step, model, optimizer, seq_len, microbatches, streams)
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        state, sums = jax.lax.fori_loop(
            0,
            num_steps,
            lambda _, loop: one(*loop),
            (state, TrainMetrics(zero, none, zero, none, none)),
        )
        return state, sums._replace(grad_norm=sums.grad_norm / jnp.maximum(num_steps - sums.skipped, 1))

    sharded = jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=(STATE_SPECS, STREAM_SPECS, REPLICATED),
        out_specs=(STATE_SPECS, REPLICATED),
    )
    # Left to itself, jit would describe the same places in other words, and compile again for its own output.
    placed = (state_shardings(mesh), NamedSharding(mesh, REPLICATED))
    jitted = jax.jit(sharded, donate_argnums=0, out_shardings=placed)

    @functools.wraps(jitted)
    def train_step(
        state: TrainState, streams: Streams, num_steps: int | None = None
    ) -> tuple[TrainState, TrainMetrics]:
        return jitted(state, streams, np.int32(steps_per_call if num_steps is None else num_steps))

    return train_step


def _one_step(
    model: CharLSTM,
    optimizer: optax.GradientTransformation,
    seq_len: int,
    microbatches: int,
    streams: Streams,
    state: TrainState,
    sums: TrainMetrics,
) -> tuple[TrainState, TrainMetrics]:
    """One optimizer step on one device's streams; runs under shard_map."""
    window = cut_window(streams, state.cursor, seq_len)
    fresh = state.cursor == 0
    before = jax.tree.map(lambda leaf: jnp.where(fresh, 0, leaf), state.carry)
    # Parameters are made to vary over the devices first: the gradient of a replicated input would come out summed.
    varying = jax.lax.pcast(state.params, DATA_AXIS, to="varying")
    key = jax.random.fold_in(state.key, state.step)
    grads, carry, nats = _gradients(model, varying, key, window, before, microbatches)
    grads = jax.lax.pmean(grads, DATA_AXIS)
    nats, chars = jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS)

    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(nats)

    def update(params: Params, opt_state: optax.OptState) -> tuple[Params, optax.OptState]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    # Not a choice between new and old values, for which XLA would copy the optimizer's moments at every step.
    params, opt_state = jax.lax.cond(finite, update, lambda *kept: kept, state.params, state.opt_state)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        cursor=(state.cursor + 1) % streams.windows,
        params=params,
        opt_state=opt_state,
        carry=jax.tree.map(lambda new, old: jnp.where(finite, new, old), carry, before),
        skipped=skipped,
    )
    metrics = TrainMetrics(
        nats=sums.nats + jnp.where(finite, nats, 0),
        chars=sums.chars + jnp.where(finite, chars, 0),
        grad_norm=sums.grad_norm + jnp.where(finite, norm, 0),
        skipped=sums.skipped + ~finite,
        skipped_in_a_row=jnp.maximum(sums.skipped_in_a_row, skipped),
    )
    return state, metrics


def _gradients(
    model: CharLSTM, params: Params, key: Array, window: Window, carry: Carry, microbatches: int
) -> tuple[Params, Carry, Array]:
    """One device's gradient of its summed nats over B * T: -> (gradient, carry after the window, nats)."""
    local_batch = window.inputs.shape[0]
    stream_ids = jax.lax.axis_index(DATA_AXIS) * local_batch + jnp.arange(local_batch)

    def loss(params: Params, window: Window, carry: Carry, stream_ids: Array) -> tuple[Array, tuple[Carry, Array]]:
        logits, after = model.apply(
            {"params": params}, window.inputs, carry, train=True, stream_ids=stream_ids, rngs={"dropout": key}
        )
        part = jnp.sum(cross_entropy(logits, window.labels) * window.counts)
        return part / (microbatches * window.labels.size), (after, part)

    gradient = jax.grad(loss, has_aux=True)
    if microbatches == 1:
        grads, (carry, nats) = gradient(params, window, carry, stream_ids)
        return grads, carry, nats

    def one(total: Params, part: tuple[Window, Carry, Array]) -> tuple[Params, tuple[Carry, Array]]:
        grads, out = gradient(params, *part)
        return jax.tree.map(jnp.add, total, grads), out

    def split(leaf: Array) -> Array:
        return leaf.reshape(microbatches, local_batch // microbatches, *leaf.shape[1:])

    zeros = jax.tree.map(jnp.zeros_like, params)
    parts = jax.tree.map(split, (window, carry, stream_ids))
    grads, (carries, nats) = jax.lax.scan(one, zeros, parts)
    return grads, jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), carries, carry), jnp.sum(nats)
