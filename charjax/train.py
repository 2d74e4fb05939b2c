"""The training step and the evaluation step: pure functions over a mesh of devices.

Streams of text lie on the devices; a step cuts its window there, so nothing crosses from the host. One code path
serves one device and many: the step runs under `shard_map`, every device takes its streams, and gradients meet in one
all-reduce after the time loop.
"""

import functools
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from charjax.corpus import Streams, make_streams
from charjax.losses import cross_entropy
from charjax.model import Carry, CharLSTM, init_carry, init_params
from charjax.sharding import DATA_AXIS, OVER_STREAMS, REPLICATED, check_divides, make_mesh, put_streams
from charjax.types import Array

Params = Any  # flax's nested dict of arrays

EVAL_WINDOW = 100
EVAL_BURN_IN = 200
EVAL_MAX_STREAMS = 256


@flax.struct.dataclass
class TrainState:
    """All that training goes on from.

    Attributes:
        step: [] int32, optimizer steps taken.
        cursor: [] int32, the window of the streams that comes next.
        params: the model's parameters, float32, a copy on each device.
        opt_state: optax state.
        carry: the recurrent state after the window before, split over the devices.
        key: PRNG key that each step's dropout key is derived from.
    """

    step: Array
    cursor: Array
    params: Params
    opt_state: optax.OptState
    carry: Carry
    key: Array


class TrainMetrics(NamedTuple):
    """Sums over the steps of one call.

    Attributes:
        nats: [] float32, sum of -log p(label).
        count: [] int32, number of labels; nats / count is the loss.
        grad_norm: [] float32, mean global norm of the gradients before clipping.
    """

    nats: Array
    count: Array
    grad_norm: Array


class EvalMetrics(NamedTuple):
    """Sums of each window over all streams: `nats` [W] float32 and `count` [W] int32."""

    nats: Array
    count: Array


class TrainStep(Protocol):
    """(state, streams) -> (state, metrics); `num_steps` overrides `steps_per_call` without a new compilation."""

    def __call__(
        self, state: TrainState, streams: Streams, num_steps: int | None = None
    ) -> tuple[TrainState, TrainMetrics]:
        """Takes num_steps optimizer steps; the state passed in is donated and must not be used again."""
        ...


class EvalStep(Protocol):
    """(params, streams) -> metrics of the whole split."""

    def __call__(self, params: Params, streams: Streams) -> EvalMetrics:
        """Reads the streams from their beginning with a state of its own."""
        ...


_STATE_SPECS = TrainState(
    step=REPLICATED,
    cursor=REPLICATED,
    params=REPLICATED,
    opt_state=REPLICATED,
    carry=OVER_STREAMS,
    key=REPLICATED,
)


def init_train_state(
    key: Array, model: CharLSTM, optimizer: optax.GradientTransformation, *, batch_size: int, mesh: Mesh | None = None
) -> TrainState:
    """A fresh state, created where it belongs on the mesh.

    Args:
        key: PRNG key; initial parameters and all dropout follow from it.
        model: the model.
        optimizer: optax transformation; see `make_optimizer`.
        batch_size: B, streams over all devices together.
        mesh: devices; by default all.

    Raises:
        UserError: batch_size is no multiple of the number of devices.
    """
    return jax.jit(_initializer(model, optimizer, batch_size), out_shardings=_shardings(mesh, batch_size))(key)


def abstract_train_state(
    model: CharLSTM, optimizer: optax.GradientTransformation, *, batch_size: int, mesh: Mesh | None = None
) -> TrainState:
    """The state's shapes, dtypes and shardings as `jax.ShapeDtypeStruct`s, which a restore fills."""
    shapes = jax.eval_shape(_initializer(model, optimizer, batch_size), jax.random.key(0))
    shardings = _shardings(mesh, batch_size)

    def placed(sharding: NamedSharding, subtree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), subtree)

    return jax.tree.map(placed, shardings, shapes)  # type: ignore[no-any-return]


def _shardings(mesh: Mesh | None, batch_size: int) -> TrainState:
    mesh = mesh or make_mesh()
    check_divides(batch_size, mesh)
    return jax.tree.map(functools.partial(NamedSharding, mesh), _STATE_SPECS)  # type: ignore[no-any-return]


def _initializer(model: CharLSTM, optimizer: optax.GradientTransformation, batch_size: int) -> Any:
    def init(key: Array) -> TrainState:
        params_key, dropout_key = jax.random.split(key)
        params = init_params(params_key, model)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            cursor=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            carry=init_carry(model, batch_size),
            key=dropout_key,
        )

    return init


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
        (state, streams) -> (state, metrics), with `streams` from `make_streams`, put on the mesh by `put_streams`.
        It compiles once; the state passed in is donated.
    """
    mesh = mesh or make_mesh()

    def steps(
        state: TrainState, streams: Streams, num_steps: Array
    ) -> tuple[TrainState, TrainMetrics]:
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
        in_specs=(_STATE_SPECS, OVER_STREAMS, REPLICATED),
        out_specs=(_STATE_SPECS, REPLICATED),
    )
    jitted = jax.jit(sharded, donate_argnums=0)

    @functools.wraps(jitted)
    def train_step(
        state: TrainState, streams: Streams, num_steps: int | None = None
    ) -> tuple[TrainState, TrainMetrics]:
        return jitted(state, streams, jnp.int32(num_steps or steps_per_call))  # type: ignore[no-any-return]

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
    nats, count = jax.lax.psum((nats, jnp.sum(window.counts)), DATA_AXIS)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        cursor=(state.cursor + 1) % num_windows(streams, seq_len),
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=carry,
    )
    norm = optax.global_norm(grads)
    return state, TrainMetrics(sums.nats + nats, sums.count + count, sums.grad_norm + norm)


class Window(NamedTuple):
    """One window of every stream: `inputs` and `labels` [B, T], and which labels count, `counts` [B, T] bool."""

    inputs: Array
    labels: Array
    counts: Array


def cut_window(streams: Streams, cursor: Array, seq_len: int) -> Window:
    """Cuts window `cursor` ([] int32) of `seq_len` characters; labels are the inputs moved by one."""
    start = cursor * seq_len
    ids = jax.lax.dynamic_slice_in_dim(streams.ids, start, seq_len + 1, axis=1)
    position = (start + jnp.arange(seq_len))[None]
    counts = (streams.first[:, None] <= position) & (position < streams.stop[:, None])
    return Window(ids[:, :-1], ids[:, 1:], counts)


def num_windows(streams: Streams, seq_len: int) -> int:
    """Windows per pass over the streams.

    Raises:
        ValueError: the streams were made for another seq_len.
    """
    windows, remainder = divmod(streams.ids.shape[1] - 1, seq_len)
    if remainder or not windows:
        raise ValueError(f"streams of {streams.ids.shape[1]} characters are not windows of seq_len {seq_len}, plus one")
    return windows


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

    sharded = jax.shard_map(
        run, mesh=mesh or make_mesh(), in_specs=(REPLICATED, OVER_STREAMS), out_specs=REPLICATED
    )
    return jax.jit(sharded)  # type: ignore[no-any-return]


def make_evaluator(model: CharLSTM, ids: np.ndarray, *, mesh: Mesh | None = None) -> "Evaluator":
    """Lays a text out for evaluation, once for many evaluations."""
    mesh = mesh or make_mesh()
    # Enough streams to fill the machine, few enough that reading each one's burn-in costs about a tenth.
    wanted = min(EVAL_MAX_STREAMS, max(1, (len(ids) - 1) // (10 * EVAL_BURN_IN)))
    batch_size = -(-wanted // mesh.size) * mesh.size
    streams = make_streams(ids, batch_size=batch_size, seq_len=EVAL_WINDOW, burn_in=EVAL_BURN_IN)
    return Evaluator(make_eval_step(model, seq_len=EVAL_WINDOW, mesh=mesh), put_streams(streams, mesh))


class Evaluator(NamedTuple):
    """params -> nats per character over a text; see `evaluate`."""

    eval_step: EvalStep
    streams: Streams

    def __call__(self, params: Params) -> float:
        """Mean nats per character."""
        metrics = self.eval_step(params, self.streams)
        return float(np.sum(metrics.nats, dtype=np.float64) / np.sum(metrics.count, dtype=np.int64))


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
