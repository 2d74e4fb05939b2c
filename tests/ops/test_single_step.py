"""Single steps give what reading the whole sequence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.array_types import LSTMCarry
from charjax.generation.xla_decoder import XlaDecoder
from charjax.model import CharLSTM, init_params
from charjax.ops.lstm.single_step import logits, start, step

BATCH, HIDDEN, VOCAB = 3, 6, 11


def make(layers, dtype):
    model = CharLSTM(VOCAB, hidden_dim=HIDDEN, hidden_layers=layers, implementation="flax", dtype=dtype)
    params = init_params(jax.random.key(0), model)
    params["head"]["bias"] = jax.random.normal(jax.random.key(1), (VOCAB,))
    keys = iter(jax.random.split(jax.random.key(2), 2 * layers))
    normal = lambda: jax.random.normal(next(keys), (BATCH, HIDDEN))  # noqa: E731
    carry = tuple(LSTMCarry(normal(), normal()) for _ in range(layers))
    return model, params, carry, jax.random.randint(jax.random.key(3), (BATCH, 9), 0, VOCAB)


@jax.jit
def take(weights, state, ids):
    """A step -> (state, logits)."""
    state = step(weights, state, ids)
    return state, logits(weights, state)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("summands", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_steps_are_the_sequence(layers, summands, dtype, tolerance):
    model, params, carry, ids = make(layers, dtype)
    expected, expected_carry = jax.jit(model.apply)({"params": params}, ids, carry)
    weights = XlaDecoder(model, model.dtype).pack(params).steps
    state = start(weights, carry, summands=summands)
    for n in range(ids.shape[1]):
        state, found = take(weights, state, ids[:, n])
        np.testing.assert_allclose(found, expected[:, n], atol=tolerance)
    for one, other in zip(jax.tree.leaves(state.carry), jax.tree.leaves(expected_carry), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


def test_an_integer_out_of_range_gives_nan():
    model, params, carry, ids = make(2, "float32")
    weights = XlaDecoder(model, model.dtype).pack(params).steps
    _, found = take(weights, start(weights, carry), ids[:, 0].at[1].set(VOCAB))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[jnp.array([0, 2])]).all()
