"""A decoder on the device itself, against float64 NumPy: the characters it samples, and the state it ends in."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.problem import VOCAB, generation_params
from benchmarks.common.reference import lstm_float64
from charjax import CharLSTM, SampleConfig
from charjax.generation.blocks import capacity_for
from charjax.generation.decoder import make_decoder
from charjax.generation.sampling import Sampling, gumbel_noise, make_settings
from charjax.model import layer_weights


def check(implementation: str | None, dtype: str, hidden_dim: int, streams: int, length: int) -> dict[str, float]:
    """Samples from two layers in a zero state.

    Returns:
        "state", the largest error of the final c and h as a share of their largest value; "choice", the largest amount
        in nats by which another character's score exceeds that of the sampled one.
    """
    sizes = {"hidden_dim": hidden_dim, "hidden_layers": 2}
    params = generation_params(sizes)
    model = CharLSTM(VOCAB, **sizes, implementation=implementation, dtype=dtype)
    decoder, keys = make_decoder(model), jax.random.split(jax.random.key(1), streams)
    sampling = Sampling(keys, np.int32(0), make_settings(SampleConfig(temperature=1.0), streams))
    weights = decoder.pack(jax.device_put(params))
    with jax.default_matmul_precision("highest" if dtype == "float32" else None):
        after, ids = decoder.write(
            weights, decoder.init(streams), sampling, np.int32(length), capacity=capacity_for(length), filtered=False
        )
    ids, found = np.asarray(ids)[:, :length], [(np.asarray(c), np.asarray(h)) for c, h in after.carry]
    noise = np.asarray(gumbel_noise(keys, jnp.arange(length), VOCAB), np.float64)
    y, expected = ids, []
    for layer in layer_weights(model, params):
        zero = np.zeros((streams, hidden_dim))
        y, c, h = lstm_float64(*layer, y, zero, zero)
        expected.append((c, h))
    before = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
    head = {name: np.asarray(array, np.float64) for name, array in params["head"].items()}
    scores = before @ head["kernel"] + head["bias"] + noise.swapaxes(0, 1)
    chosen = np.take_along_axis(scores, ids[..., None], axis=-1)[..., 0]
    errors = [
        np.max(np.abs(a - e)) / np.max(np.abs(e))
        for pair, pair_expected in zip(found, expected, strict=True)
        for a, e in zip(pair, pair_expected, strict=True)
    ]
    return {
        "state": float(np.nan_to_num(max(errors), nan=np.inf)),
        "choice": float(np.max(np.max(scores, axis=-1) - chosen)),
    }
