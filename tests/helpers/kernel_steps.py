"""What every compiled form of the kernel must generate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import LSTMCarry
from charjax.config import SampleConfig
from charjax.generation.native_decoder import NativeDecoder
from charjax.generation.sampling import Settings, gumbel_noise, make_settings, sample
from charjax.model import CharLSTM, init_carry, init_params
from charjax.ops.lstm.native.generation import SAMPLE, run_steps


def check_steps(library, dtype, batch, hidden):
    """Compares the logits and the state of forced steps with the model's."""
    rng = np.random.default_rng(0)
    model = CharLSTM(20, hidden_dim=hidden, hidden_layers=2)
    params = init_params(jax.random.key(0), model)
    given = rng.integers(0, 20, (batch, 12)).astype(np.int32)
    weights = NativeDecoder(model, dtype, library).pack(params)
    keys, settings = jax.random.split(jax.random.key(0), batch), make_settings(SampleConfig(), batch)
    take = jax.jit(functools.partial(run_steps, library, dtype, vocab_size=20, with_logits=True))
    _, carry, found = take(weights, init_carry(model, batch), given, keys, jnp.int32(0), settings)
    logits, expected = model.apply({"params": params}, given, init_carry(model, batch))
    tolerance = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.02}[dtype]
    np.testing.assert_allclose(found[:, 1:], logits[:, :-1], atol=tolerance)
    np.testing.assert_allclose(carry[1].h, expected[1].h, atol=tolerance)


def check_sampling(library):
    """Compares characters sampled from the same logits with the same noise, with all kinds of settings."""
    rng = np.random.default_rng(0)
    logits, keys = rng.normal(0, 3, (200, 65)), jax.random.split(jax.random.key(0), 200)
    noise = gumbel_noise(keys, jnp.arange(7, 8), 65)
    settings = Settings(
        rng.choice([0, 0.3, 1, 3], 200).astype(np.float32),
        rng.choice([1, 2, 10, 64, 65, 1000], 200).astype(np.int32),
        rng.choice([1e-6, 0.3, 0.9, np.inf], 200).astype(np.float32),
        rng.choice([0, 0.01, 0.3, 1], 200).astype(np.float32),
    )
    expected = jax.vmap(functools.partial(sample, filtered=True))(noise[0], jnp.asarray(logits, jnp.float32), settings)
    # One layer whose unit n predicts the logits of row n, by the state that it starts in.
    one = CharLSTM(65, hidden_dim=200, hidden_layers=1)
    params = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), one))
    params["head"]["kernel"] = jnp.asarray(logits, jnp.float32)
    carry = (LSTMCarry(jnp.zeros((200, 200)), jnp.eye(200)),)
    given = np.full((200, 1), SAMPLE, np.int32)
    take = jax.jit(functools.partial(run_steps, library, "float32", vocab_size=65))
    weights = NativeDecoder(one, "float32", library).pack(params)
    ids, _, _ = take(weights, carry, given, keys, jnp.int32(7), settings)
    np.testing.assert_array_equal(ids[:, 0], expected)
