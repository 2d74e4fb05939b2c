"""Training step, a pure function over a mesh of devices.

The text is on the devices, where each step slices out its window, so nothing is transferred from the host. One code
path serves both single and multiple devices: the step runs under `shard_map`, each device trains on its own sequences
of the batch, and gradients are averaged in one all-reduce after the time loop.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Array, Params
from charjax.data.batching import Streams, Window, cut_window, windows_held
from charjax.data.prefetch import STREAM_SPECS
from charjax.distributed.mesh import DATA_AXIS, REPLICATED, check_divides, checked_mesh
from charjax.errors import check_type, checked_whole
from charjax.host.jax_modes import in_default_modes
from charjax.metrics import cross_entropy
from charjax.model import Carry, CharLSTM, check_model
from charjax.ops.lstm.api import takes_varying
from charjax.train_state import STATE_SPECS, TrainState, check_optimizer, state_shardings
from charjax.training.optimizer import Hyperparameters, Optimizer

# Number of compiled steps cached in the process, so that a second run with the same settings compiles nothing.
STEPS_KEPT = 16


class TrainMetrics(NamedTuple):
    """Sums over the steps of one call.

    Attributes:
        nats: [] float32, sum of -log p(label).
        chars: [] int32, number of characters predicted; nats / chars is the loss.
        grad_norm: [] float32, mean global norm of the gradients before clipping.
        skipped: [] int32, number of skipped steps, which are excluded from nats, chars and grad_norm.
        skipped_in_a_row: [] int32, length of the longest run of skipped steps, which may have begun in earlier calls.
    """

    nats: Array
    chars: Array
    grad_norm: Array
    skipped: Array
    skipped_in_a_row: Array


class StepSettings(NamedTuple):
    """Traced scalars that may differ between the models trained by one program.

    Attributes:
        hyperparameters: the optimizer's hyperparameters; None if it was not made by `make_optimizer`.
        dropout: dropout rate to use instead of the model's; None uses the model's.
    """

    hyperparameters: Hyperparameters | None
    dropout: Array | None = None


class TrainStep(NamedTuple):
    """(state, streams) -> (state, metrics); see `make_train_step`.

    Attributes:
        jitted: (state, streams, num_steps [] int32, hyperparameters) -> (state, metrics).
        steps_per_call: default number of steps per call.
        hyperparameters: the optimizer's hyperparameters; None if it was not made by `make_optimizer`.
    """

    jitted: Any
    steps_per_call: int
    hyperparameters: Hyperparameters | None

    @in_default_modes
    def __call__(
        self, state: TrainState, streams: Streams, num_steps: int | None = None, rate_scale: float = 1.0
    ) -> tuple[TrainState, TrainMetrics]:
        """Takes optimizer steps; changing their number does not trigger recompilation.

        Args:
            state: the training state; donated, so it must not be used again.
            streams: the text; see `make_train_step`.
            num_steps: number of steps; `steps_per_call` by default.
            rate_scale: factor for the learning rate; only optimizers from `make_optimizer` use it.

        Raises:
            UserError: an argument has the wrong type.
            ValueError: see `make_train_step`.
        """
        check_type("state", state, TrainState, "make one with init_train_state")
        check_type("state.carry", state.carry, tuple, "make one with init_carry")
        check_type("streams", streams, Streams, "make them with make_streams")
        num_steps = self.steps_per_call if num_steps is None else checked_whole("num_steps", num_steps, least=0)
        hyperparameters = self.hyperparameters
        if hyperparameters is not None:
            scaled = np.float32(rate_scale) * hyperparameters.learning_rate
            hyperparameters = hyperparameters._replace(learning_rate=scaled)
        return self.jitted(state, streams, np.int32(num_steps), hyperparameters)


def make_train_step(
    model: CharLSTM,
    optimizer: optax.GradientTransformation,
    *,
    seq_len: int,
    mesh: Mesh | None = None,
    steps_per_call: int = 1,
    microbatches: int = 1,
) -> TrainStep:
    """Builds the jitted training step: truncated BPTT (Williams and Peng 1990) over each sequence's next window.

    The recurrent state is carried from window to window and reset to zero when the text starts again. The gradient is
    that of the summed nats divided by B * T, however much of the window is padding, so all characters have equal
    weight.

    A step whose loss or gradient is not finite leaves the parameters, optimizer state and recurrent state unchanged, as
    if its window did not exist; only `step`, `cursor` and the count of skipped steps advance.

    Args:
        model: the model.
        optimizer: the transformation that the state was initialized with.
        seq_len: T, characters per window; the streams must be made with the same value.
        mesh: devices to use; all by default. Must be the mesh passed to `init_train_state`.
        steps_per_call: optimizer steps per call.
        microbatches: number of parts into which each device splits its sequences, processed one after another (gradient
            accumulation). Memory for the backward pass shrinks in proportion; results differ only by rounding.

    Returns:
        (state, streams) -> (state, metrics), where `streams` are from `make_streams`, put on the mesh by `put_streams`,
        or a chunk of them that contains the windows from the state's cursor onward. The state is donated. The step
        compiles once; steps built later with equal arguments, or with an optimizer that has different rates, share the
        compiled program.

    Raises:
        UserError: an argument has the wrong type or is out of range, or the mesh was not made by `make_mesh`; when
            called, if microbatches does not divide the batch.
        ValueError: when called, if the streams were made for a different seq_len, or the state for a different model or
            batch size.

    Examples:
        >>> import jax, numpy as np
        >>> from charjax import (
        ...     CharLSTM, TrainConfig, init_train_state, make_mesh, make_optimizer, make_streams, make_train_step,
        ...     put_streams,
        ... )
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1)
        >>> optimizer = make_optimizer(TrainConfig(), total_steps=4)
        >>> state = init_train_state(jax.random.key(0), model, optimizer, batch_size=2, mesh=mesh)
        >>> streams = make_streams(np.arange(41, dtype=np.uint8) % 5, batch_size=2, seq_len=10)
        >>> train_step = make_train_step(model, optimizer, seq_len=10, mesh=mesh, steps_per_call=4)
        >>> state, metrics = train_step(state, put_streams(streams, mesh))
        >>> int(state.step), int(metrics.chars)
        (4, 80)
    """
    check_model(model)
    check_optimizer(optimizer)
    seq_len, microbatches = checked_whole("seq_len", seq_len), checked_whole("microbatches", microbatches)
    steps_per_call = checked_whole("steps_per_call", steps_per_call)
    hyperparameters = None
    if isinstance(optimizer, Optimizer):
        optimizer, hyperparameters = optimizer.shared, optimizer.hyperparameters
    jitted = _jitted_step(model, optimizer, seq_len, checked_mesh(mesh), microbatches)
    return TrainStep(jitted, steps_per_call, hyperparameters)


@functools.lru_cache(maxsize=STEPS_KEPT)
def _jitted_step(
    model: CharLSTM, optimizer: optax.GradientTransformation, seq_len: int, mesh: Mesh, microbatches: int
) -> Any:
    """Returns `TrainStep.jitted`."""

    def steps(
        state: TrainState, streams: Streams, num_steps: Array, hyperparameters: Hyperparameters | None
    ) -> tuple[TrainState, TrainMetrics]:
        windows_held(streams, seq_len)  # raises if they were made for a different seq_len
        check_divides(len(streams.ids) * mesh.size, mesh, microbatches)
        settings = StepSettings(hyperparameters)
        return take_steps(model, optimizer, seq_len, microbatches, settings, state, streams, num_steps)

    in_specs = (STATE_SPECS, STREAM_SPECS, REPLICATED, REPLICATED)
    sharded = jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=(STATE_SPECS, REPLICATED),
        check_vma=takes_varying(model.implementation),
    )
    # By default, jit describes output shardings differently from input shardings and recompiles for its own output.
    placed = (state_shardings(mesh), NamedSharding(mesh, REPLICATED))
    return jax.jit(sharded, donate_argnums=0, out_shardings=placed)


def take_steps(
    model: CharLSTM,
    optimizer: optax.GradientTransformation,
    seq_len: int,
    microbatches: int,
    settings: StepSettings,
    state: TrainState,
    streams: Streams,
    num_steps: Array,
) -> tuple[TrainState, TrainMetrics]:
    """Takes optimizer steps on one device's sequences; runs under shard_map."""
    with_settings = optax.with_extra_args_support(optimizer)
    one = functools.partial(_one_step, model, with_settings, seq_len, microbatches, streams, settings)
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    start = state, TrainMetrics(zero, none, zero, none, none)
    state, sums = jax.lax.fori_loop(0, num_steps, lambda _, loop: one(*loop), start)
    return state, sums._replace(grad_norm=sums.grad_norm / jnp.maximum(num_steps - sums.skipped, 1))


def _one_step(
    model: CharLSTM,
    optimizer: optax.GradientTransformationExtraArgs,
    seq_len: int,
    microbatches: int,
    streams: Streams,
    settings: StepSettings,
    state: TrainState,
    sums: TrainMetrics,
) -> tuple[TrainState, TrainMetrics]:
    """Takes one optimizer step on one device's sequences; runs under shard_map."""
    window = cut_window(streams, state.cursor, seq_len)
    fresh = state.cursor == 0
    before = jax.tree.map(lambda leaf: jnp.where(fresh, 0, leaf), state.carry)
    # Cast to device-varying first; otherwise the gradient of a replicated input would be summed over the devices.
    varying = jax.lax.pcast(state.params, DATA_AXIS, to="varying")
    key = jax.random.fold_in(state.key, state.step)
    grads, carry, nats = _gradients(model, varying, key, window, before, microbatches, settings.dropout)
    grads = jax.lax.pmean(grads, DATA_AXIS)
    nats, chars = jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS)

    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(nats)

    def update(params: Params, opt_state: optax.OptState) -> tuple[Params, optax.OptState]:
        updates, opt_state = optimizer.update(grads, opt_state, params, hyperparameters=settings.hyperparameters)
        return optax.apply_updates(params, updates), opt_state

    # Selecting between new and old values would make XLA copy the optimizer moments at every step.
    params, opt_state = jax.lax.cond(finite, update, lambda *kept: kept, state.params, state.opt_state)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    state = state.replace(
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
    model: CharLSTM,
    params: Params,
    key: Array,
    window: Window,
    carry: Carry,
    microbatches: int,
    dropout: Array | None,
) -> tuple[Params, Carry, Array]:
    """Returns one device's gradient of its summed nats divided by B * T, the carry after the window, and the nats."""
    local_batch = window.inputs.shape[0]
    stream_ids = jax.lax.axis_index(DATA_AXIS) * local_batch + jnp.arange(local_batch)

    def loss(params: Params, window: Window, carry: Carry, stream_ids: Array) -> tuple[Array, tuple[Carry, Array]]:
        options = {"train": True, "stream_ids": stream_ids, "dropout": dropout}
        logits, after = model.apply({"params": params}, window.inputs, carry, rngs={"dropout": key}, **options)
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
