"""Generation in JAX: `charjax.generate`, flax's cells in a jitted loop, and what text is checked against."""

import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.problem import CONTEXT, VOCAB, generation_params, text
from benchmarks.peers.generation import Generator, start
from benchmarks.peers.steps import Steps
from charjax import CharLSTM, SampleConfig, generate, init_carry, init_params
from charjax.generation.blocks import capacity_for
from charjax.generation.decoder import make_decoder
from charjax.generation.sampling import Sampling, make_settings

Sizes = dict[str, Any]


def charjax(sizes: Sizes, dtype: str, length: int, trial: float) -> tuple[Generator, dict[str, Any]]:
    """Sets up `charjax.generate` as a user calls it."""
    del trial
    # Eight bits are a format of the weights only: such a model is a float32 model.
    model = _model(sizes, "float32" if dtype == "int8" else dtype)
    params, context = jax.device_put(generation_params(sizes)), jnp.asarray(text(sizes["streams"], CONTEXT))

    def sample(length: int, seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        ids = generate(model, params, context, key=key, length=length, temperature=1.0, weights=dtype)
        return np.asarray(ids)

    def logits(ids: np.ndarray) -> np.ndarray:
        decoder = make_decoder(model, dtype)
        top = decoder.prefill(decoder.pack(params), decoder.init(len(ids)), ids).carry[-1].h
        return np.asarray(top @ params["head"]["kernel"] + params["head"]["bias"][None])

    return start(sample, logits, length)


def charjax_steps(sizes: Sizes, dtype: str, implementation: str | None = None) -> tuple[Steps, dict[str, Any]]:
    """Sets up charjax's decoding without the reading of a context; a step is "length" characters for every text."""
    model = _model(sizes, dtype, implementation)
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

    begin = time.perf_counter()
    run(1)
    return Steps(run), {"first_call_seconds": time.perf_counter() - begin}


class _FlaxStep(nn.Module):
    """`OptimizedLSTMCell`s and a `Dense`, one character at a time: (carries, ids [B]) -> (carries, logits [B, V])."""

    hidden_dim: int
    layers: int
    dtype: str

    @nn.compact
    def __call__(self, carries: Any, ids: jax.Array) -> Any:
        x, after = jax.nn.one_hot(ids, VOCAB, dtype=self.dtype), []
        for carry in carries:
            last, x = nn.OptimizedLSTMCell(self.hidden_dim, dtype=self.dtype)(carry, x)
            after.append(last)
        return tuple(after), nn.Dense(VOCAB, dtype=self.dtype)(x).astype(jnp.float32)


def flax(sizes: Sizes, dtype: str, length: int, trial: float) -> tuple[Generator, dict[str, Any]]:
    """Sets up flax's cells, stepped in a jitted `lax.scan`; characters by `jax.random.categorical`."""
    del trial
    module = _FlaxStep(sizes["hidden_dim"], sizes["hidden_layers"], dtype)
    params = jax.device_put(_flax_params(generation_params(sizes), sizes["hidden_layers"]))
    context = jnp.asarray(text(sizes["streams"], CONTEXT))

    def prefill(params: Any, ids_BT: jax.Array) -> Any:
        zero = jnp.zeros((len(ids_BT), sizes["hidden_dim"]), dtype)
        empty = tuple((zero, zero) for _ in range(sizes["hidden_layers"]))
        carries, logits = jax.lax.scan(functools.partial(module.apply, params), empty, ids_BT.T)
        return carries, logits[-1]

    @functools.partial(jax.jit, static_argnames="length")
    def write(params: Any, context: jax.Array, key: jax.Array, length: int) -> jax.Array:
        def step(state: Any, key: jax.Array) -> Any:
            carries, logits = state
            ids = jax.random.categorical(key, logits)
            return module.apply(params, carries, ids), ids

        keys = jax.random.split(key, length)
        # The last character needs no step after it.
        (_, logits), ids = jax.lax.scan(step, prefill(params, context), keys[:-1])
        return jnp.concatenate([ids, jax.random.categorical(keys[-1], logits)[None]]).T

    def sample(length: int, seed: int) -> np.ndarray:
        return np.asarray(write(params, context, jax.random.key(seed), length=length))

    def logits(ids: np.ndarray) -> np.ndarray:
        return np.asarray(jax.jit(prefill)(params, jnp.asarray(ids))[1])

    return start(sample, logits, length)


def reference(sizes: Sizes, ids: list[list[int]]) -> dict[str, Any]:
    """Returns the logits [B, V] after a given text [B, T], by charjax's portable implementation in float32."""
    return {"logits": _logits_along(sizes, np.asarray(ids, np.int32))[:, -1].tolist()}


def judge(sizes: Sizes, ids: list[list[int]]) -> dict[str, float]:
    """Compares texts that follow the context with what the model would sample, by the portable implementation.

    Returns:
        "excess", the mean of -log p of the characters minus the entropy that each was sampled with, in nats (0 is
        expected); "deviation", its standard deviation if the model sampled the text; "entropy".
    """
    whole = np.concatenate([text(sizes["streams"], CONTEXT), np.asarray(ids, np.int32)], axis=1)
    log_p = np.asarray(jax.nn.log_softmax(_logits_along(sizes, whole[:, :-1])[:, CONTEXT - 1 :]), np.float64)
    nats = -np.take_along_axis(log_p, np.asarray(ids)[..., None], -1)[..., 0]
    entropy = -np.sum(np.exp(log_p) * log_p, -1)
    variance = np.sum(np.exp(log_p) * (log_p + entropy[..., None]) ** 2, -1)
    return {
        "excess": float(np.mean(nats - entropy)),
        "deviation": float(np.sqrt(variance.sum()) / variance.size),
        "entropy": float(np.mean(entropy)),
    }


def _logits_along(sizes: Sizes, ids: np.ndarray) -> np.ndarray:
    model = _model(sizes, "float32", "scan")
    logits, _ = jax.jit(model.apply)({"params": generation_params(sizes)}, ids, init_carry(model, len(ids)))
    return np.asarray(logits)


def _model(sizes: Sizes, dtype: str, implementation: str | None = None) -> CharLSTM:
    return CharLSTM(
        VOCAB, hidden_dim=sizes["hidden_dim"], hidden_layers=sizes["hidden_layers"], dtype=dtype,
        implementation=implementation,
    )  # fmt: skip


def _flax_params(params: Any, layers: int) -> Any:
    """Returns charjax's parameters under flax's names: a kernel per gate and input, the bias with the recurrent one."""
    tree: dict[str, Any] = {"Dense_0": dict(params["head"])}
    for n in range(layers):
        cell = params[f"layer_{n}"]["cell"]
        split = {name: np.split(array, 4, axis=-1) for name, array in cell.items()}
        names = {}
        for gate, w_ih, w_hh, bias in zip("ifgo", split["w_ih"], split["w_hh"], split["bias"], strict=True):
            names |= {f"i{gate}": {"kernel": w_ih}, f"h{gate}": {"kernel": w_hh, "bias": bias}}
        tree[f"OptimizedLSTMCell_{n}"] = names
    return {"params": tree}
