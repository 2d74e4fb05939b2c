"""The training step in JAX: charjax's own, flax's RNN and Equinox's cells."""

import contextlib
import logging.handlers
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.problem import LEARNING_RATE, SEQ_LEN, VOCAB, WINDOWS, initial_params, training_ids, windows
from benchmarks.peers.jax_profile import ProfiledSteps
from benchmarks.peers.steps import Steps, start
from charjax import CharLSTM, init_train_state, make_mesh, make_streams, make_train_step, put_streams
from charjax.distributed.mesh import make_training_mesh, use_all_cores
from charjax.host.memory import release_unused_memory, reuse_memory
from charjax.ops.lstm import wavefront
from charjax.ops.lstm.api import IMPLEMENTATIONS

Sizes = dict[str, Any]
SetUp = tuple[Steps, dict[str, Any]]


def describe() -> dict[str, Any]:
    """Returns the platform, the device and the names of the implementations of an LSTM layer."""
    device = jax.devices()[0]
    return {
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "client": getattr(device.client, "platform_version", ""),
        "implementations": list(IMPLEMENTATIONS),
    }


def peak(dtype: str) -> dict[str, float]:
    """Returns the GFLOP/s of a product of 2048 x 2048 matrices, the fastest of 20."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048)).astype(dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return {"gflops": 2 * 2048**3 / min(seconds) / 1e9}


def charjax(
    sizes: Sizes, *, dtype: str, losses: int, implementation: str | None = None, all_cores: bool = False,
    precision: str | None = None, unroll: int | None = None,
) -> SetUp:  # fmt: skip
    """Sets up charjax's training step, which takes many steps per call.

    Args:
        sizes: hidden_dim, hidden_layers and batch_size.
        dtype: of the model.
        losses: how many first losses to report.
        implementation: of the model.
        all_cores: whether every core is a device.
        precision: of float32 matmuls.
        unroll: diagonals per iteration of the loops of `wavefront`; None for its own number.
    """
    if unroll:
        wavefront.UNROLL = unroll
    batch_size, seq_len, vocab_size = sizes["batch_size"], sizes.get("seq_len", SEQ_LEN), sizes.get("vocab_size", VOCAB)
    if all_cores:
        # As `fit` does, before JAX is first used.
        reuse_memory()
        use_all_cores()
    mesh = make_training_mesh(batch_size) if all_cores else make_mesh(jax.devices()[:1])

    model = CharLSTM(
        vocab_size, hidden_dim=sizes["hidden_dim"], hidden_layers=sizes["hidden_layers"],
        implementation=implementation, dtype=dtype,
    )  # fmt: skip
    optimizer = make_optimizer()
    streams = put_streams(make_streams(training_ids(sizes), batch_size=batch_size, seq_len=seq_len), mesh)
    step = make_train_step(model, optimizer, seq_len=seq_len, mesh=mesh)
    # A state does not depend on how layers are computed: this way all peers' states come from one program.
    portable = model.clone(implementation="scan", dtype="float32")
    state = init_train_state(jax.random.key(0), portable, optimizer, batch_size=batch_size, mesh=mesh)
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), initial_params(sizes), state.params)
    state, calls = state.replace(params=params), 0

    def run(steps: int) -> float:
        nonlocal state, calls
        with jax.default_matmul_precision(precision):
            state, metrics = step(state, streams, steps)
        loss = float(metrics.nats) / int(metrics.chars)
        calls += 1
        if all_cores and calls <= 2:
            release_unused_memory()  # as `fit` does
        return loss

    with _log() as lines:
        _, about = start(run, losses)
    return ProfiledSteps(run), {**about, "devices": mesh.size, "log": lines}


def flax(sizes: Sizes, *, dtype: str, losses: int) -> SetUp:
    """Sets up a plain jitted step of `flax.linen.RNN` of `OptimizedLSTMCell`."""
    return _plain_step(flax_model, sizes, dtype, losses)


def equinox(sizes: Sizes, *, dtype: str, losses: int) -> SetUp:
    """Sets up a plain jitted step of `equinox.nn.LSTMCell`."""
    return _plain_step(equinox_model, sizes, dtype, losses)


def make_optimizer() -> optax.GradientTransformation:
    """Returns the optimizer of every peer in JAX: clipping to a global norm of 1, and Adam."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))


def make_plain_step(apply: Callable[..., Any], optimizer: optax.GradientTransformation, dtype: str) -> Any:
    """Returns step(params, opt_state, carry, window [B, T + 1]) -> (params, opt_state, carry, loss), not jitted."""

    def step(params: Any, opt_state: Any, carry: Any, window: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, after = apply(params, jax.nn.one_hot(window[:, :-1], VOCAB, dtype=dtype), carry)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), window[:, 1:])
            return losses.mean(), after

        (value, carry_after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry_after, value

    return step


def flax_model(sizes: Sizes, dtype: str) -> Any:
    """Returns (params, apply, carry) of stacked `flax.linen.RNN` of `OptimizedLSTMCell`, and a head."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, carries: Any) -> Any:
            after = []
            for carry in carries:
                cell = nn.OptimizedLSTMCell(sizes["hidden_dim"], dtype=dtype)
                last, x = nn.RNN(cell, return_carry=True)(x, initial_carry=carry)
                after.append(last)
            return nn.Dense(VOCAB, dtype=dtype)(x), after

    state = np.zeros((sizes["batch_size"], sizes["hidden_dim"]), jnp.dtype(dtype))
    carry = [(state, state) for _ in range(sizes["hidden_layers"])]
    model = Model()
    x = jnp.zeros((sizes["batch_size"], 1, VOCAB), dtype)
    return model.init(jax.random.key(0), x, carry), model.apply, carry


def equinox_model(sizes: Sizes, dtype: str) -> Any:
    """Returns (params, apply, carry) of `equinox.nn.LSTMCell` under vmap, in a `lax.scan` per layer, and a head."""
    import equinox as eqx

    del dtype  # its cells have none of their own
    dim, keys = sizes["hidden_dim"], jax.random.split(jax.random.key(0), sizes["hidden_layers"] + 1)
    cells = [eqx.nn.LSTMCell(VOCAB if not n else dim, dim, key=key) for n, key in enumerate(keys[:-1])]
    model = (cells, eqx.nn.Linear(dim, VOCAB, key=keys[-1]))
    params, static = eqx.partition(model, eqx.is_array)

    def apply(params: Any, x: Any, carries: Any) -> Any:
        cells, head = eqx.combine(params, static)
        x, after = x.swapaxes(0, 1), []
        for cell, carry in zip(cells, carries, strict=True):

            def step(carry: Any, at: Any, cell: Any = cell) -> Any:
                carry = jax.vmap(cell)(at, carry)
                return carry, carry[0]

            last, x = jax.lax.scan(step, carry, x)
            after.append(last)
        return jax.vmap(jax.vmap(head))(x).swapaxes(0, 1), after

    state = np.zeros((sizes["batch_size"], dim), np.float32)
    return params, apply, [(state, state) for _ in cells]


def _plain_step(make_model: Callable[[Sizes, str], Any], sizes: Sizes, dtype: str, losses: int) -> SetUp:
    params, apply, carry = make_model(sizes, dtype)
    optimizer = make_optimizer()
    ids = jnp.asarray(windows(sizes["batch_size"]))
    step = jax.jit(make_plain_step(apply, optimizer, dtype), donate_argnums=(0, 1, 2))
    zero = jax.tree.map(np.asarray, carry)
    state, cursor = [params, optimizer.init(params), None], 0

    def run(steps: int) -> float:
        nonlocal state, cursor
        value = None
        for _ in range(steps):
            if cursor == 0:
                state[2] = jax.tree.map(jnp.asarray, zero)
            *state, value = step(*state, ids[cursor])
            cursor = (cursor + 1) % WINDOWS
        return float(value)

    return start(run, losses)


@contextlib.contextmanager
def _log() -> Iterator[list[str]]:
    """Yields a list that has, at the end, what charjax logged: for instance which implementation it chose."""
    logger, handler = logging.getLogger("charjax"), logging.handlers.BufferingHandler(1000)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    lines: list[str] = []
    try:
        yield lines
    finally:
        lines += [record.getMessage() for record in handler.buffer]
        logger.removeHandler(handler)
