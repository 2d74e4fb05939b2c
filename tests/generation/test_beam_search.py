"""Beam search finds what exhaustive search finds, with the model's own log-probabilities."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax import beam_search, generate
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.generation import beam_search as beam
from charjax.generation.beam_search import beam_search_text
from charjax.generation.xla_decoder import XlaDecoder
from charjax.model import CharLSTM, init_carry, init_params

SMALL = CharLSTM(3, hidden_dim=8, hidden_layers=2)
VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2, dropout=0.5)


def lively_params(model, seed):
    """Parameters whose predictions are far from uniform, and depend on what was read."""
    return jax.tree.map(lambda leaf: 3 * leaf, init_params(jax.random.key(seed), model))


PARAMS = lively_params(MODEL, 0)


def log_probs_of(model, params, context, ids):
    """The sum of the model's log-softmax along texts [N, n] that may end in -1s, in one pass over context and text."""
    ids = np.asarray(ids)
    text = np.concatenate([np.tile(np.asarray(context, int), (len(ids), 1)), np.maximum(ids, 0)], axis=1)
    logits, _ = model.apply({"params": params}, text, init_carry(model, len(ids)))
    # The prediction before anything was read is the head's bias.
    logits = np.concatenate([np.tile(params["head"]["bias"], (len(ids), 1, 1)), logits], axis=1)
    rows = np.asarray(jax.nn.log_softmax(logits), np.float64)[:, len(context) : -1]
    return (np.take_along_axis(rows, np.maximum(ids, 0)[..., None], axis=2)[..., 0] * (ids >= 0)).sum(axis=1)


def exhaustive(params, context, length, end=None, penalty=0.0):
    """Every text of `length` characters, or that ends before: ids [N, length], -1 after the end, and log_probs."""
    texts = set()
    for text in itertools.product(range(SMALL.vocab_size), repeat=length):
        kept = text[: text.index(end) + 1] if end in text else text
        texts.add((*kept, *[-1] * (length - len(kept))))
    ids = np.array(sorted(texts))
    log_probs = log_probs_of(SMALL, params, context, ids)
    order = np.argsort(-log_probs / ((5 + (ids >= 0).sum(axis=1)) / 6) ** penalty, kind="stable")
    return ids[order], log_probs[order]


@pytest.mark.parametrize("context", [[], [2, 0, 1]])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_enough_beam_is_exhaustive(context, seed):
    params = lively_params(SMALL, seed)
    ids, log_probs = beam_search(SMALL, params, context, length=4, beam_width=27)
    expected = exhaustive(params, context, 4)
    np.testing.assert_array_equal(ids, expected[0][:27])
    np.testing.assert_allclose(log_probs, expected[1][:27], atol=2e-5)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("end", [0, 2])
def test_a_wide_enough_beam_with_an_end_is_exhaustive(penalty, end):
    params = lively_params(SMALL, 2)
    ids, log_probs = beam_search(SMALL, params, [1], length=4, beam_width=27, length_penalty=penalty, end=end)
    expected = exhaustive(params, [1], 4, end, penalty)
    np.testing.assert_array_equal(ids, expected[0][:27])
    np.testing.assert_allclose(log_probs, expected[1][:27], atol=2e-5)


def test_the_penalty_moves_long_texts_forward():
    params = lively_params(SMALL, 2)
    lengths = []
    for penalty in (-3.0, 0.0, 3.0):
        ids, _ = beam_search(SMALL, params, [1], length=8, beam_width=5, length_penalty=penalty, end=0)
        lengths.append(float((ids >= 0).sum(axis=1).mean()))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_stopping_early_changes_nothing(monkeypatch):
    params = lively_params(SMALL, 3)
    params["head"]["bias"] = params["head"]["bias"].at[0].add(3.0)
    options = {"length": 40, "beam_width": 4, "length_penalty": 0.6, "end": 0}
    ids, log_probs = beam_search(SMALL, params, [1], **options)
    monkeypatch.setattr(beam, "_is_decided", lambda *_: jnp.zeros((), bool))
    beam._search.clear_cache()
    to_the_end = beam_search(SMALL, params, [1], **options)
    beam._search.clear_cache()
    np.testing.assert_array_equal(ids, to_the_end[0])
    np.testing.assert_array_equal(log_probs, to_the_end[1])


def test_a_search_that_is_decided_stops():
    params = lively_params(SMALL, 3)
    params["head"]["bias"] = params["head"]["bias"].at[0].add(30.0)
    goal = beam.Goal(jnp.int32(200), jnp.int32(0), jnp.float32(0.0))
    decoder = XlaDecoder(SMALL, "float32")
    weights = decoder.pack(params)
    search = beam._start(decoder, weights, jnp.array([1]), 2, 256)
    for _ in range(2):
        assert not beam._is_decided(search, goal)
        search = beam._extend(decoder, weights, goal, True, search)
    assert beam._is_decided(search, goal)


def test_a_width_of_1_is_argmax():
    context = VOCAB.encode("coffee")
    greedy = generate(MODEL, PARAMS, context[None], key=jax.random.key(0), length=300, temperature=0)
    ids, _ = beam_search(MODEL, PARAMS, context, length=300, beam_width=1)
    np.testing.assert_array_equal(ids, greedy)


@pytest.mark.parametrize(("width", "length"), [(1, 1), (5, 30), (200, 3)])
def test_log_probs_are_the_models(width, length):
    context = VOCAB.encode("mocha")
    ids, log_probs = beam_search(MODEL, PARAMS, context, length=length, beam_width=width)
    assert ids.dtype == np.int32
    assert ids.shape == (width, length)
    assert len({tuple(row) for row in ids.tolist()}) == width
    assert (np.diff(log_probs) <= 0).all()
    np.testing.assert_allclose(log_probs, log_probs_of(MODEL, PARAMS, context, ids), rtol=2e-5, atol=1e-4)


def test_a_wider_beam_finds_better_texts():
    params = lively_params(SMALL, 4)
    best = [float(beam_search(SMALL, params, [0], length=7, beam_width=width)[1][0]) for width in (1, 729)]
    assert best[1] > best[0] + 0.01
    assert best[1] == pytest.approx(exhaustive(params, [0], 7)[1][0], abs=2e-5)


def test_missing_texts_are_marked():
    params = lively_params(SMALL, 0)
    ids, log_probs = beam_search(SMALL, params, [1], length=1, beam_width=5)
    assert sorted(ids[:3, 0].tolist()) == [0, 1, 2]
    assert np.isfinite(log_probs[:3]).all()
    assert (log_probs[3:] == -np.inf).all()
    assert (ids[3:] == -1).all()
    np.testing.assert_allclose(np.exp(log_probs[:3].astype(float)).sum(), 1, rtol=1e-5)


def test_length_0_gives_one_empty_text():
    ids, log_probs = beam_search(SMALL, lively_params(SMALL, 0), [], length=0, beam_width=2)
    assert ids.shape == (2, 0)
    assert log_probs.tolist() == [0.0, -np.inf]


def test_a_vocabulary_of_only_the_end_has_one_text():
    model = CharLSTM(1, hidden_dim=4, hidden_layers=1)
    ids, log_probs = beam_search(model, lively_params(model, 0), [0], length=5, beam_width=3, end=0)
    assert ids.tolist() == [[0, -1, -1, -1, -1]] + [[-1] * 5] * 2
    assert log_probs.tolist() == [0.0, -np.inf, -np.inf]


def test_ties_go_to_the_better_beam_then_the_lower_id():
    uniform = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), SMALL))
    ids, log_probs = beam_search(SMALL, uniform, [1], length=3, beam_width=5)
    assert ids.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1]]
    assert len(set(log_probs.tolist())) == 1


@pytest.mark.slow
def test_an_unrolled_loop_as_for_gpus_finds_the_same(monkeypatch):
    params = lively_params(SMALL, 5)
    options = {"length": 37, "beam_width": 3, "end": 0, "length_penalty": 2.0}
    expected = beam_search(SMALL, params, [1], **options)
    monkeypatch.setattr(beam, "steps_per_trip", lambda: 8)
    beam._search.clear_cache()
    ids, log_probs = beam_search(SMALL, params, [1], **options)
    beam._search.clear_cache()
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(log_probs, expected[1], rtol=1e-5)


def test_other_lengths_ends_and_penalties_do_not_recompile():
    params = lively_params(SMALL, 0)
    beam_search(SMALL, params, [1], length=9, beam_width=2, end=0)
    before = beam._search._cache_size()
    for length, end, penalty in ((0, 1, 0.5), (1, 2, 1), (255, 0, -1), (256, 0, 0)):
        beam_search(SMALL, params, [2], length=length, beam_width=2, end=end, length_penalty=penalty)
    assert beam._search._cache_size() == before
    beam_search(SMALL, params, [2], length=257, beam_width=2, end=0)
    assert beam._search._cache_size() == before + 1


def test_texts_are_decoded_up_to_their_end():
    params = jax.tree.map(jnp.copy, PARAMS)
    params["head"]["bias"] = params["head"]["bias"].at[10].add(12.0)
    texts = beam_search_text(MODEL, params, VOCAB, "ab", length=30, beam_width=6, end="\n")
    ids, _ = beam_search(MODEL, params, VOCAB.encode("ab"), length=30, beam_width=6, end=10)
    assert texts == [VOCAB.decode(row[row >= 0]) for row in ids]
    assert texts[0].endswith("\n")
    assert len(beam_search_text(MODEL, params, VOCAB, "", length=1, beam_width=200)) == VOCAB.size


def test_an_empty_text_starts_after_a_line_break():
    after_break = beam_search_text(MODEL, PARAMS, VOCAB, "\n", length=9, beam_width=2)
    assert beam_search_text(MODEL, PARAMS, VOCAB, "", length=9, beam_width=2) == after_break


def test_numbers_may_be_scalars_of_numpy_and_jax():
    numbers = {"length": jnp.int32(3), "beam_width": np.int64(2), "length_penalty": np.float32(1), "end": jnp.uint8(1)}
    plain = {"length": 3, "beam_width": 2, "length_penalty": 1.0, "end": 1}
    search = functools.partial(beam_search, SMALL, init_params(jax.random.key(0), SMALL), [1])
    np.testing.assert_array_equal(search(**numbers)[0], search(**plain)[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beam_width": 0}, "beam_width"),
        ({"beam_width": 2.0}, "beam_width"),
        ({"length": -1}, "length"),
        ({"length": True}, "length"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"length_penalty": float("inf")}, "length_penalty"),
        ({"end": 3}, "end"),
        ({"end": -1}, "end"),
        ({"context": [[1]]}, "context"),
        ({"context": [1.0]}, "context"),
    ],
)
def test_arguments_out_of_range_are_named(options, named):
    with pytest.raises(UserError, match=rf"^{named} must be "):
        beam_search(SMALL, {}, **{"context": [1], "length": 3, "beam_width": 2, **options})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"context": "café"}, "é"),
        ({"end": "no"}, "end"),
        ({"end": ""}, "end"),
        ({"beam_width": 10**12}, "--beam-width"),
    ],
)
def test_bad_arguments_of_beam_search_text_are_named(options, named):
    with pytest.raises(UserError, match=named):
        beam_search_text(MODEL, PARAMS, VOCAB, **options)
