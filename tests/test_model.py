"""CharLSTM: shapes, one parameter tree for all implementations, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import NOT_ON_CPU
from helpers.lstm_reference import lstm_float64

from charjax.array_types import LSTMCarry
from charjax.config import ModelConfig
from charjax.errors import UserError
from charjax.model import CharLSTM, LSTMLayer, init_carry, init_params
from charjax.ops.lstm import api
from charjax.ops.lstm.api import IMPLEMENTATIONS
from charjax.ops.lstm.dropout import drop, keep_per_sequence
from charjax.ops.lstm.native.libraries import libraries, library_for


@functools.cache
def make(**options):
    model = CharLSTM(vocab_size=11, hidden_dim=6, hidden_layers=2, **options)
    params = init_params(jax.random.key(0), model)
    ids = jax.random.randint(jax.random.key(1), (4, 9), 0, 11).astype(jnp.uint8)
    return model, params, ids


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, ids, carry):
    return model.apply({"params": params}, ids, carry)


def test_shapes_and_parameter_tree():
    model, params, ids = make()
    logits, carry = apply(model, params, ids, init_carry(model, 4))
    assert logits.shape == (4, 9, 11)
    assert logits.dtype == jnp.float32
    assert [leaf.shape for leaf in jax.tree.leaves(carry)] == [(4, 6)] * 4
    assert jax.tree.map(jnp.shape, params) == {
        "layer_0": {"cell": {"w_ih": (11, 24), "w_hh": (6, 24), "bias": (24,)}},
        "layer_1": {"cell": {"w_ih": (6, 24), "w_hh": (6, 24), "bias": (24,)}},
        "head": {"kernel": (6, 11), "bias": (11,)},
    }


# bfloat16 needs a CPU that multiplies it; tests/ops/test_lstm.py covers the error on others.
SERVED = [
    (implementation, dtype, tolerance)
    for implementation in (None, *sorted({*IMPLEMENTATIONS} - NOT_ON_CPU))
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 1e-2))
    if implementation != "native" or library_for(dtype) is not None
]


@pytest.mark.parametrize(("implementation", "dtype", "tolerance"), SERVED)
def test_all_implementations_take_the_same_parameters(implementation, dtype, tolerance):
    reference, params, ids = make(implementation="flax")
    model = CharLSTM(vocab_size=11, hidden_dim=6, hidden_layers=2, implementation=implementation, dtype=dtype)
    expected, expected_carry = apply(reference, params, ids, init_carry(reference, 4))
    logits, carry = apply(model, params, ids, init_carry(model, 4))
    np.testing.assert_allclose(logits, expected, atol=tolerance)
    for leaf, expected_leaf in zip(jax.tree.leaves(carry), jax.tree.leaves(expected_carry), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, atol=tolerance)
    fresh = init_params(jax.random.key(0), model)
    jax.tree.map(np.testing.assert_array_equal, fresh, params)


def test_a_position_does_not_see_later_characters():
    model, params, ids = make()
    logits, _ = apply(model, params, ids, init_carry(model, 4))
    changed, _ = apply(model, params, ids.at[:, 5].set((ids[:, 5] + 1) % 11), init_carry(model, 4))
    np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
    assert (np.abs(logits[:, 5:] - changed[:, 5:]).max(axis=-1) > 0).all()


def test_parts_with_the_carry_passed_on_equal_the_whole():
    model, params, ids = make()
    whole, _ = apply(model, params, ids, init_carry(model, 4))
    first, carry = apply(model, params, ids[:, :4], init_carry(model, 4))
    second, _ = apply(model, params, ids[:, 4:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)


def test_dropout_applies_only_in_training_and_to_both_layers():
    model, params, ids = make(dropout=0.5)
    run = lambda **options: model.apply({"params": params}, ids, init_carry(model, 4), **options)  # noqa: E731
    rngs = {"dropout": jax.random.key(2)}
    plain, carry = run()
    trained, dropped_carry = run(train=True, rngs=rngs)
    again, _ = run(train=True, rngs=rngs)
    other, _ = run(train=True, rngs={"dropout": jax.random.key(3)})
    assert not np.allclose(plain, trained)
    np.testing.assert_array_equal(trained, again)
    assert not np.allclose(trained, other)
    # Dropout reaches layer 1's state, through its input, but not layer 0's.
    np.testing.assert_array_equal(carry[0].c, dropped_carry[0].c)
    assert not np.allclose(carry[1].c, dropped_carry[1].c)


def test_dropout_has_one_mask_per_window():
    model = CharLSTM(5, hidden_dim=32, hidden_layers=2, dropout=0.5)
    (first, second) = model.bind({}, rngs={"dropout": jax.random.key(2)})._keep((3, 7), None, 0.5)
    assert first.shape == second.shape == (3, 7, 32)
    for mask in (first, second):
        assert (mask == mask[:, :1]).all()
        assert (mask[0] != mask[1]).any()
    assert (first != second).any()


def test_dropout_of_a_row_does_not_depend_on_the_others():
    key = jax.random.key(0)
    whole = keep_per_sequence(key, 0.3, jnp.arange(6), (50, 8))
    np.testing.assert_array_equal(whole[3:], keep_per_sequence(key, 0.3, jnp.arange(3, 6), (50, 8)))
    assert not np.array_equal(whole[0], whole[1])
    assert abs(whole.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / whole.size)
    np.testing.assert_allclose(drop(jnp.ones(whole.shape), whole, 0.3), np.where(whole, 1 / 0.7, 0), rtol=1e-6)


def test_a_single_layer():
    layer = LSTMLayer(hidden_dim=6, input_dim=5)
    x, carry = jax.random.normal(jax.random.key(0), (3, 7, 5)), LSTMCarry(jnp.zeros((3, 6)), jnp.zeros((3, 6)))
    variables = layer.init(jax.random.key(1), x, carry)
    y, after = jax.jit(layer.apply)(variables, x, carry)
    np.testing.assert_array_equal(y[:, -1], after.h)
    expected, _, _ = lstm_float64(*variables["params"]["cell"].values(), x, *carry)
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"hidden_dim": 0}, {"hidden_layers": 0}, {"dropout": 1.0}, {"dtype": "float16"}])
def test_config_checks_the_models_sizes(options):
    with pytest.raises(UserError, match=next(iter(options))):
        CharLSTM(vocab_size=11, **options).config  # noqa: B018


def test_config_round_trip():
    model, _, _ = make(dropout=0.2, dtype="bfloat16", implementation="scan")
    assert CharLSTM.from_config(model.config, model.vocab_size) == model


def test_dtype_auto_is_the_faster_one_on_this_machine(monkeypatch):
    config = ModelConfig(hidden_dim=6)
    assert config.dtype == "auto"
    fast = next(iter(libraries()), None)
    monkeypatch.setattr(api, "library_for", lambda dtype: fast)
    expected = "bfloat16" if fast else "float32"
    assert CharLSTM.from_config(config, 11).dtype == expected
    monkeypatch.setattr(api, "library_for", lambda dtype: None)
    assert CharLSTM.from_config(config, 11).dtype == "float32"
