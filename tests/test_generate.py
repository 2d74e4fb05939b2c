"""Sampling: the jitted loop writes what a naive one would, and draws as it should."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax import generate as generate_function
from charjax.config import SampleConfig
from charjax.errors import UserError
from charjax.generate import (
    choose,
    decode,
    encode_context,
    generate_text,
    is_filtered,
    make_choice,
    stream_ids,
    stream_text,
)
from charjax.model import CharLSTM, init_carry, init_params
from charjax.vocab import Vocab

VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2, dropout=0.5)
PARAMS = init_params(jax.random.key(0), MODEL)
generate = functools.partial(generate_function, MODEL, PARAMS)


def context(*texts):
    return np.stack([VOCAB.encode(text) for text in texts])


def test_argmax_is_that_of_reading_the_whole_text_anew_for_each_character():
    ids = context("coffee", "mocha.")
    written = generate(ids, key=jax.random.key(1), length=12, temperature=0)
    for _ in range(12):
        logits, _ = MODEL.apply({"params": PARAMS}, ids, init_carry(MODEL, 2))
        ids = np.concatenate([ids, np.argmax(logits[:, -1], axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(written, ids[:, 6:])


def test_a_row_does_not_depend_on_its_neighbours():
    alone = generate(context("coffee"), key=jax.random.key(1), length=30)
    among = generate(context("coffee", "mocha.", "coffee"), key=jax.random.key(1), length=30)
    np.testing.assert_array_equal(among[0], alone[0])
    assert not np.array_equal(among[0], among[2])


def test_a_seed_writes_the_same_text_again_and_another_one_another():
    write = functools.partial(generate_text, MODEL, PARAMS, VOCAB, "a", length=40)
    assert write(seed=1) == write(seed=1)
    assert write(seed=1) != write(seed=2)
    assert write(seed=1, num_samples=3)[0] == write(seed=1)[0]
    assert len(set(write(seed=1, num_samples=3))) == 3


@pytest.mark.parametrize("length", [0, 1, 17])
def test_lengths(length):
    assert generate(context("a"), key=jax.random.key(0), length=length).shape == (1, length)
    assert len(generate_text(MODEL, PARAMS, VOCAB, "", length=length)[0]) == length


def test_an_empty_context_starts_from_the_heads_bias():
    params = jax.tree.map(jnp.copy, PARAMS)
    params["head"]["bias"] = params["head"]["bias"].at[65].set(50.0)
    ids = generate_function(MODEL, params, np.zeros((3, 0), np.uint8), key=jax.random.key(0), length=1)
    assert ids.tolist() == [[65]] * 3


def test_an_empty_text_starts_after_a_line_break():
    assert encode_context(VOCAB, "").tolist() == [10]
    assert encode_context(Vocab.from_text("ab"), "").tolist() == []


def reference(logits, temperature, top_k, top_p):
    """The distribution to draw from, in NumPy and float64: temperature, then top-k, then top-p."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    probs = np.exp(scaled - scaled.max())
    if top_k is not None:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    if top_p is not None:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= top_p]] = 0
    return probs / probs.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.7), (4, 0.8), (100, 1.0), (1, 0.01)])
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    logits = jnp.array([2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.4, 0.9])
    config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    draw = functools.partial(choose, logits=logits, choice=make_choice(config), filtered=is_filtered(config))
    count = 20_000
    drawn = np.bincount(jax.vmap(draw)(jax.random.gumbel(jax.random.key(0), (count, 8))), minlength=8)
    expected = reference(logits, temperature, top_k, top_p)
    assert (drawn[expected == 0] == 0).all()
    deviation = np.abs(drawn / count - expected)
    assert (deviation <= 4.5 * np.sqrt(expected * (1 - expected) / count)).all()


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}])
def test_where_one_character_is_left_it_is_the_likeliest(options):
    greedy = generate(context("coffee"), key=jax.random.key(1), length=20, temperature=0)
    ids = generate(context("coffee"), key=jax.random.key(2), length=20, **options)
    np.testing.assert_array_equal(ids, greedy)


def test_other_settings_do_not_compile_anew():
    write = functools.partial(generate, context("abc"), length=9)
    write(key=jax.random.key(0), temperature=0.7, top_k=3)
    write(key=jax.random.key(0), temperature=0.7)
    before = decode._cache_size()
    write(key=jax.random.key(1), temperature=0.2, top_k=9)
    write(key=jax.random.key(1), temperature=1.2, top_p=0.3)
    write(key=jax.random.key(1), temperature=0)
    assert decode._cache_size() == before


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 24])
def test_pieces_are_the_whole(length):
    config = SampleConfig(length=length, temperature=0.9, top_k=20, seed=5)
    whole = generate(context("ab", "cd"), key=jax.random.key(5), length=length, temperature=0.9, top_k=20)
    pieces = list(stream_ids(MODEL, PARAMS, context("ab", "cd"), config, chunk=8))
    assert np.concatenate([np.zeros((2, 0), np.int32), *pieces], axis=1).tolist() == whole.tolist()


def test_streamed_text_is_the_text():
    (text,) = generate_text(MODEL, PARAMS, VOCAB, "ab", seed=3, length=50)
    assert "".join(stream_text(MODEL, PARAMS, VOCAB, "ab", SampleConfig(length=50, seed=3))) == text


def test_a_character_cut_by_the_end_of_a_piece_stays_whole(monkeypatch):
    content = np.frombuffer("é😀\u00fc".encode() + b"\xf0", np.uint8)
    pieces = [content[None, i : i + 1] for i in range(len(content))]
    monkeypatch.setattr(sys.modules["charjax.generate"], "stream_ids", lambda *_: pieces)
    pieces = list(stream_text(MODEL, PARAMS, Vocab.bytes(), "", SampleConfig()))
    assert [piece for piece in pieces if piece] == ["é", "😀", "ü", "\ufffd"]


def test_a_context_outside_the_vocabulary_is_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\)"):
        generate_text(MODEL, PARAMS, VOCAB, "café")


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"length": -1}])
def test_settings_out_of_range_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        generate(context("a"), key=jax.random.key(0), **{"length": 3, **options})
