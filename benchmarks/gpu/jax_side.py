"""What the JAX process of benchmarks.gpu does: charjax's training step and generation, flax's, and the checks."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import VOCAB, charjax_peer, flax_model, jax_peer
from benchmarks.reference import lstm_float64, lstm_gradients_float64
from charjax import CharLSTM, SampleConfig, init_params
from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.generation.blocks import capacity_for
from charjax.generation.decoder import make_decoder
from charjax.generation.sampling import Sampling, make_settings
from charjax.ops.lstm.api import IMPLEMENTATIONS, lstm_stack


class _Told(logging.Handler):
    """Keeps what charjax's log says, such as which implementation it chose."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


TOLD = _Told()
logging.getLogger("charjax").addHandler(TOLD)
logging.getLogger("charjax").setLevel(logging.INFO)


def describe() -> dict[str, Any]:
    """The platform, the device and the implementations that are registered."""
    device = jax.devices()[0]
    return {
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "client": getattr(device.client, "platform_version", ""),
        "implementations": list(IMPLEMENTATIONS),
    }


def release() -> None:
    """Forgets what was told of the peers that are gone; their memory went with them."""
    TOLD.lines.clear()


def train(sizes: dict[str, Any], spec: dict[str, Any], losses: int) -> tuple[Callable[[int], Any], dict[str, Any]]:
    """Sets a training step up: spec has "kind", "dtype", "precision" and, for charjax, "implementation"."""
    sizes = {**sizes, "dtype": spec["dtype"]}
    TOLD.lines.clear()
    with _products(spec["precision"]):
        if spec["kind"] == "charjax":
            inner = charjax_peer(sizes, implementation=spec["implementation"], all_cores=False)
        else:
            inner = jax_peer(sizes, flax_model)

    def run(steps: int) -> float:
        with _products(spec["precision"]):
            return inner(steps)

    start = time.perf_counter()
    first = run(1)
    reply = {"first_step_seconds": time.perf_counter() - start, "log": list(TOLD.lines)}
    return run, {**reply, "losses": [first, *(run(1) for _ in range(losses - 1))]}


def generate(sizes: dict[str, Any], spec: dict[str, Any]) -> tuple[Callable[[int], Any], dict[str, Any]]:
    """Sets `charjax.generate`'s decoding up; a step is a call that draws "length" characters for every stream."""
    model = CharLSTM(
        VOCAB, hidden_dim=sizes["hidden_dim"], hidden_layers=sizes["hidden_layers"],
        implementation=spec.get("implementation"), dtype=spec["dtype"],
    )  # fmt: skip
    params = init_params(jax.random.key(0), model)
    streams, length = sizes["streams"], sizes["length"]
    decoder, keys = make_decoder(model), jax.random.split(jax.random.key(1), streams)
    weights, sampling = decoder.pack(params), Sampling(keys, np.int32(0), make_settings(SampleConfig(), streams))
    state = decoder.prefill(weights, decoder.init(streams), jnp.zeros((streams, 1), jnp.int32))

    def run(steps: int) -> None:
        nonlocal state, sampling
        size, capacity = np.int32(length), capacity_for(length)
        for _ in range(steps):
            state, ids = decoder.write(weights, state, sampling, size, capacity=capacity, filtered=False)
            sampling = sampling._replace(position=sampling.position + size)
        ids.block_until_ready()

    start = time.perf_counter()
    run(1)
    return run, {"first_call_seconds": time.perf_counter() - start}


def _products(precision: str | None) -> contextlib.AbstractContextManager[Any]:
    return jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()


def check(implementation: str, dtype: str, hidden_dim: int, batch_size: int, seq_len: int) -> dict[str, float]:
    """Two layers, the first on characters, against float64: the largest error of the outputs and of the gradients.

    An array's error is its largest difference, as a share of the array's largest value.
    """
    layers, ids, carries, pulls = _inputs(hidden_dim, batch_size, seq_len)

    def scalar(layers: Any, carries: Any) -> Any:
        y, after = lstm_stack(layers, ids, carries, implementation=implementation, dtype=dtype)
        outputs = (y, [(carry.c, carry.h) for carry in after])
        products = jax.tree.map(lambda out, pull: jnp.sum(out * pull), outputs, pulls)
        return sum(jax.tree.leaves(products)), outputs

    # By default a GPU's float32 products are TensorFloat-32, and a TPU's bfloat16.
    with _products("highest" if dtype == "float32" else None):
        run = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))
        (_, outputs), gradients = jax.device_get(run(layers, carries))
    expected_outputs, expected_gradients = _expected(hidden_dim, batch_size, seq_len)
    return {
        "outputs": _largest_error(outputs, expected_outputs),
        "gradients": _largest_error(gradients, expected_gradients),
    }


def _largest_error(actual: Any, expected: Any) -> float:
    def error(a: Any, e: np.ndarray) -> float:
        # A NaN is the largest of errors, and max() might pass over it.
        return float(np.nan_to_num(np.max(np.abs(np.asarray(a, np.float64) - e)) / np.max(np.abs(e)), nan=np.inf))

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


def _inputs(hidden: int, batch: int, time: int) -> Any:
    """Weights and states of the layers, the characters, and what the outputs are weighed with in the scalar."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    layers = [
        LSTMWeights(
            normal(inputs, 4 * hidden, scale=scale), normal(hidden, 4 * hidden, scale=hidden**-0.5), normal(4 * hidden)
        )
        for inputs, scale in ((VOCAB, 1.0), (hidden, hidden**-0.5))
    ]
    ids = rng.integers(0, VOCAB, (batch, time)).astype(np.uint8)
    carries = [LSTMCarry(normal(batch, hidden), normal(batch, hidden)) for _ in layers]
    pulls = (normal(batch, time, hidden), [(normal(batch, hidden), normal(batch, hidden)) for _ in layers])
    return layers, ids, carries, pulls


@functools.cache
def _expected(hidden: int, batch: int, time: int) -> Any:
    """Outputs and gradients in float64, as `check` gets them."""
    (first, second), ids, carries, (dy, ((dc_0, dh_0), (dc_1, dh_1))) = _inputs(hidden, batch, time)
    y_0, *after_0 = lstm_float64(*first, ids, *carries[0])
    y_1, *after_1 = lstm_float64(*second, y_0, *carries[1])
    upper = lstm_gradients_float64(*second, y_0, *carries[1], dy=dy, dc=dc_1, dh=dh_1)
    lower = lstm_gradients_float64(*first, ids, *carries[0], dy=upper.x, dc=dc_0, dh=dh_0)
    weights = [LSTMWeights(part.w_ih, part.w_hh, part.bias) for part in (lower, upper)]
    states = [LSTMCarry(part.c, part.h) for part in (lower, upper)]
    return (y_1, [tuple(after_0), tuple(after_1)]), (weights, states)
