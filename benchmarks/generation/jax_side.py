"""The peers that run on JAX: `charjax.generate`, and flax's LSTM cells in a jitted loop; and what text is judged by."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import charjax
from benchmarks.generation.problem import CONTEXT, parameters, text
from benchmarks.peers import VOCAB, peak_gflops
from charjax import CharLSTM, init_carry
from charjax.generation.decoder import make_decoder

Draw = Callable[[int, int], np.ndarray]
"""(length, seed) -> ids [B, length], the context read anew in every call."""
Logits = Callable[[np.ndarray], np.ndarray]
"""ids [B, T] -> logits [B, V] of the character after them."""


def set_up_charjax(sizes: dict[str, Any], dtype: str, trial: float) -> tuple[Draw, Logits, dict[str, Any]]:
    """`charjax.generate` as a user calls it."""
    del trial
    # Eight bits are a format of weights alone: the model that has them is one of float32.
    model = _model(sizes, "float32" if dtype == "int8" else dtype)
    params, context = jax.device_put(parameters(sizes)), jnp.asarray(text(sizes["streams"], CONTEXT))

    def draw(length: int, seed: int) -> np.ndarray:
        ids = charjax.generate(
            model, params, context, key=jax.random.key(seed), length=length, temperature=1.0, weights=dtype
        )
        return np.asarray(ids)

    def logits(ids: np.ndarray) -> np.ndarray:
        decoder = make_decoder(model, dtype)
        top = decoder.prefill(decoder.pack(params), decoder.init(len(ids)), ids).carry[-1].h
        return np.asarray(top @ params["head"]["kernel"] + params["head"]["bias"][None])

    return draw, logits, {}


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


def set_up_flax(sizes: dict[str, Any], dtype: str, trial: float) -> tuple[Draw, Logits, dict[str, Any]]:
    """Flax's cells stepped in a jitted `lax.scan`, characters by `jax.random.categorical`."""
    del trial
    module = _FlaxStep(sizes["hidden_dim"], sizes["hidden_layers"], dtype)
    params = jax.device_put(_flax_params(parameters(sizes), sizes["hidden_layers"]))
    context = jnp.asarray(text(sizes["streams"], CONTEXT))

    def read(params: Any, ids_BT: jax.Array) -> Any:
        zero = jnp.zeros((len(ids_BT), sizes["hidden_dim"]), dtype)
        start = tuple((zero, zero) for _ in range(sizes["hidden_layers"]))
        carries, logits = jax.lax.scan(functools.partial(module.apply, params), start, ids_BT.T)
        return carries, logits[-1]

    @functools.partial(jax.jit, static_argnames="length")
    def generate(params: Any, context: jax.Array, key: jax.Array, length: int) -> jax.Array:
        def step(state: Any, key: jax.Array) -> Any:
            carries, logits = state
            ids = jax.random.categorical(key, logits)
            return module.apply(params, carries, ids), ids

        keys = jax.random.split(key, length)
        # The last character needs no step after it.
        (_, logits), ids = jax.lax.scan(step, read(params, context), keys[:-1])
        return jnp.concatenate([ids, jax.random.categorical(keys[-1], logits)[None]]).T

    def draw(length: int, seed: int) -> np.ndarray:
        return np.asarray(generate(params, context, jax.random.key(seed), length=length))

    def logits(ids: np.ndarray) -> np.ndarray:
        return np.asarray(jax.jit(read)(params, jnp.asarray(ids))[1])

    return draw, logits, {}


def peak(dtype: str) -> dict[str, float]:
    """The machine's matrix-product rate."""
    return {"gflops": peak_gflops(dtype)}


def reference(sizes: dict[str, Any], ids: list[list[int]]) -> dict[str, Any]:
    """Logits [B, V] after a forced text [B, T], by charjax's portable implementation in float32."""
    return {"logits": _read(sizes, np.asarray(ids, np.int32))[:, -1].tolist()}


def judge(sizes: dict[str, Any], ids: list[list[int]]) -> dict[str, float]:
    """Whether a text that goes on from the context could have been drawn from the model, by the same implementation.

    Returns:
        "excess", the mean of -log p of its characters less the entropy that each was drawn with, in nats, whose
        expectation is 0; "deviation", its standard deviation if the text was so drawn; "entropy".
    """
    whole = np.concatenate([text(sizes["streams"], CONTEXT), np.asarray(ids, np.int32)], axis=1)
    log_p = np.asarray(jax.nn.log_softmax(_read(sizes, whole[:, :-1])[:, CONTEXT - 1 :]), np.float64)
    nats = -np.take_along_axis(log_p, np.asarray(ids)[..., None], -1)[..., 0]
    entropy = -np.sum(np.exp(log_p) * log_p, -1)
    variance = np.sum(np.exp(log_p) * (log_p + entropy[..., None]) ** 2, -1)
    return {
        "excess": float(np.mean(nats - entropy)),
        "deviation": float(np.sqrt(variance.sum()) / variance.size),
        "entropy": float(np.mean(entropy)),
    }


def _read(sizes: dict[str, Any], ids: np.ndarray) -> np.ndarray:
    model = _model(sizes, "float32").clone(implementation="scan")
    logits, _ = jax.jit(model.apply)({"params": parameters(sizes)}, ids, init_carry(model, len(ids)))
    return np.asarray(logits)


def _model(sizes: dict[str, Any], dtype: str) -> CharLSTM:
    return CharLSTM(VOCAB, hidden_dim=sizes["hidden_dim"], hidden_layers=sizes["hidden_layers"], dtype=dtype)


def _flax_params(params: Any, layers: int) -> Any:
    """Charjax's parameters under flax's names: a kernel per gate and source, the bias with the recurrent one."""
    tree: dict[str, Any] = {"Dense_0": dict(params["head"])}
    for n in range(layers):
        cell = params[f"layer_{n}"]["cell"]
        split = {name: np.split(array, 4, axis=-1) for name, array in cell.items()}
        names = {}
        for gate, w_ih, w_hh, bias in zip("ifgo", split["w_ih"], split["w_hh"], split["bias"], strict=True):
            names |= {f"i{gate}": {"kernel": w_ih}, f"h{gate}": {"kernel": w_hh, "bias": bias}}
        tree[f"OptimizedLSTMCell_{n}"] = names
    return {"params": tree}


PEERS = {"charjax": set_up_charjax, "flax": set_up_flax}
