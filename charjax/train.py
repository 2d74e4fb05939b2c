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

from charjax.feed import STREAM_SPECS
from charjax.losses import cross_entropy
from charjax.model import Carry, CharLSTM
from charjax.sharding import DATA_AXIS, REPLICATED, make_mesh
from charjax.streams import Streams, cut_window, windows_held
from charjax.train_state import STATE_SPECS, TrainState, state_shardings
from charjax.types import Array, Params


class TrainMetrics(NamedTuple):
    """Sums over the steps of one call.

    Attributes:
        nats: [] float32, sum of -log p(label).
        chars: [] int32, number of characters predicted; nats / chars is the loss.
        grad_norm: [] float32, mean global norm of the gradients before clipping.
    """

    nats: Array
    chars: Array
    grad_norm: Array


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
) -> TrainStep:
    """Builds the jitted training step: truncated BPTT (Williams and Peng 1990) over the next window of every stream.

    The recurrent state is carried from window to window and zeroed when the streams start again. The gradient is
    that of the summed nats over B * T, whatever part of the window is padding, so every character weighs the same.

    Args:
        model: the model.
        optimizer: the transformation that the state was initialised with.
        seq_len: T, characters per window; the streams must be made with the same.
        mesh: devices; by default all. The same mesh as for `init_train_state`.
        steps_per_call: optimizer steps that one call takes.

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
        one = functools.partial(_one_step, model, optimizer, seq_len, streams)
        zero = jnp.zeros((), jnp.float32)
        state, sums = jax.lax.fori_loop(
            0,
            num_steps,
            lambda _, loop: one(*loop),
            (state, TrainMetrics(zero, jnp.zeros((), jnp.int32), zero)),
        )
        return state, sums._replace(grad_norm=sums.grad_norm / num_steps)

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
    streams: Streams,
    state: TrainState,
    sums: TrainMetrics,
) -> tuple[TrainState, TrainMetrics]:
    """One optimizer step on one device's streams; runs under shard_map."""
    window = cut_window(streams, state.cursor, seq_len)
    fresh = state.cursor == 0
    carry = jax.tree.map(lambda leaf: jnp.where(fresh, 0, leaf), state.carry)
    key = jax.random.fold_in(state.key, state.step)
    local_batch = window.inputs.shape[0]
    stream_ids = jax.lax.axis_index(DATA_AXIS) * local_batch + jnp.arange(local_batch)

    def loss(params: Params) -> tuple[Array, tuple[Carry, Array]]:
        logits, after = model.apply(
            {"params": params}, window.inputs, carry, train=True, stream_ids=stream_ids, rngs={"dropout": key}
        )
        nats = jnp.sum(cross_entropy(logits, window.labels) * window.counts)
        return nats / window.labels.size, (after, nats)

    # Parameters are made to vary over the devices first: the gradient of a replicated input would come out summed.
    varying = jax.lax.pcast(state.params, DATA_AXIS, to="varying")
    grads, (carry, nats) = jax.grad(loss, has_aux=True)(varying)
    grads = jax.lax.pmean(grads, DATA_AXIS)
    nats, chars = jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        cursor=(state.cursor + 1) % streams.windows,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=carry,
    )
    norm = optax.tree.norm(grads)
    return state, TrainMetrics(sums.nats + nats, sums.chars + chars, sums.grad_norm + norm)
