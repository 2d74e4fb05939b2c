"""Activations are those of the reference implementation."""

import jax
import numpy as np
import pytest
from helpers.neuron_models import COUNTER, LATCH, PROSE, hand_made

from charjax.analysis.activations import (
    BURN_IN,
    CHUNK,
    ROWS,
    activations,
    excerpt_activations,
    read_side_by_side,
    unit_activations,
)
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.model import CharLSTM, init_carry, init_params

VOCAB = Vocab.ascii()


def make(layers=2, **options):
    model = CharLSTM(11, hidden_dim=6, hidden_layers=layers, **options)
    params = init_params(jax.random.key(0), model)
    # Large enough for every gate to open and close.
    return model, jax.tree.map(lambda leaf: 3 * leaf, params)


def random_ids(batch, length):
    return np.random.default_rng(1).integers(0, 11, (batch, length)).astype(np.uint8)


def step_by_step(model, params, ids):
    """tanh(c) by the model itself, a character at a time: [B, N, L, H]."""
    reference = model.clone(implementation="flax")
    read = jax.jit(lambda ids, carry: reference.apply({"params": params}, ids, carry)[1])
    carry, found = init_carry(model, len(ids)), []
    for n in range(ids.shape[1]):
        carry = read(ids[:, n : n + 1], carry)
        found.append(np.stack([np.tanh(layer.c) for layer in carry], axis=1))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("length", [1, CHUNK, CHUNK + 9])
def test_they_equal_the_reference(layers, length):
    model, params = make(layers)
    ids = random_ids(2, length)
    found = activations(model, params, ids)
    assert (found.shape, found.dtype) == ((2, length, layers, 6), np.float32)
    np.testing.assert_allclose(found, step_by_step(model, params, ids), atol=5e-5)


def test_bfloat16():
    model, params = make(dtype="bfloat16")
    ids = random_ids(2, 30)
    np.testing.assert_allclose(activations(model, params, ids), step_by_step(model, params, ids), atol=0.05)


def test_they_do_not_depend_on_the_chunk(monkeypatch):
    model, params = make()
    ids = random_ids(1, 70)
    whole = activations(model, params, ids)
    for chunk in (1, 7, 70):
        monkeypatch.setattr("charjax.analysis.activations.CHUNK", chunk)
        np.testing.assert_allclose(activations(model, params, ids), whole, atol=1e-6)


def test_every_length_takes_one_compilation():
    from charjax.analysis.activations import _read_chunk

    model, params = make()
    _read_chunk.clear_cache()
    for length in (3, CHUNK, 2 * CHUNK + 1):
        activations(model, params, random_ids(1, length))
    assert _read_chunk._cache_size() == 1


def test_selected_units_equal_those_of_all():
    model, params = make()
    ids, units = random_ids(2, 40), [(1, 5), (0, 0), (1, 2)]
    found = unit_activations(model, params, ids, units)
    assert found.shape == (2, 40, 3)
    whole = activations(model, params, ids)
    for number, (layer, unit) in enumerate(units):
        np.testing.assert_allclose(found[:, :, number], whole[:, :, layer, unit], atol=1e-6)


def test_empty_texts_and_no_units():
    model, params = make()
    assert activations(model, params, np.zeros((2, 0))).shape == (2, 0, 2, 6)
    assert unit_activations(model, params, random_ids(1, 5), []).shape == (1, 5, 0)


@pytest.mark.parametrize("unit", [(2, 0), (0, 6), (-1, 0), (0, -1)])
def test_a_missing_unit_is_named(unit):
    model, params = make()
    with pytest.raises(UserError, match=r"layers 0 to 1, each with units 0 to 5"):
        unit_activations(model, params, random_ids(1, 5), [unit])


@pytest.mark.parametrize("ids", [np.zeros(5, int), np.zeros((1, 5)), np.full((1, 5), 11), np.full((1, 5), -1)])
def test_bad_ids(ids):
    model, params = make()
    with pytest.raises(UserError, match="ids must"):
        activations(model, params, ids)


def test_an_excerpt_is_that_of_the_whole_text():
    model, params = hand_made(VOCAB)
    text = VOCAB.encode(PROSE * 30)
    for part in (slice(0, 50), slice(700, 800), slice(2200, 2333), slice(len(text) - 20, len(text) + 9)):
        whole = activations(model, params, text[None, : part.stop])[0, part.start :, 0, [LATCH.unit, COUNTER.unit]]
        found = excerpt_activations(model, params, VOCAB, text, part, [LATCH, COUNTER])
        np.testing.assert_allclose(found, whole.T, atol=1e-4)


def test_a_text_in_parts_side_by_side_is_read_once_and_whole():
    model, params = hand_made(VOCAB)
    text = VOCAB.encode((PROSE * 400)[: ROWS * (BURN_IN + CHUNK) + 77])
    whole = activations(model, params, text[None])[0]
    seen = np.zeros(len(text), int)
    for positions, cells in read_side_by_side(model, params, VOCAB, text, 0):
        counted = positions >= 0
        np.add.at(seen, positions[counted], 1)
        np.testing.assert_allclose(cells[counted], whole[positions[counted]], atol=1e-4)
    assert (seen == 1).all()
