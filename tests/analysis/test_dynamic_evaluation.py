"""Dynamic evaluation is that of a plain loop in float64, and never looks ahead."""

import functools
import importlib
import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax import dynamic_score, dynamic_score_pieces, score
from charjax.analysis.adaptation import _adapt
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.model import CharLSTM, init_params

DYNAMIC = importlib.import_module("charjax.analysis.dynamic_evaluation")
V, SEQ_LEN = 11, 5
BLOCK = 4 * SEQ_LEN
MODEL = CharLSTM(V, hidden_dim=6, hidden_layers=2, dropout=0.5)
PARAMS = init_params(jax.random.key(0), MODEL)
RNG = np.random.default_rng(0)
# It repeats itself, so that there is something to learn; not a whole number of segments.
IDS = np.tile(RNG.integers(0, V, 30), 7)[:203].astype(np.uint8)
TRAIN_IDS = RNG.integers(0, V, 62).astype(np.uint8)
RATES = {"learning_rate": 0.01, "decay": 0.02}


dynamic = functools.partial(dynamic_score, MODEL, PARAMS, seq_len=SEQ_LEN, **RATES)


def joined(pieces, model=MODEL, params=PARAMS, **options):
    """Scores a text that comes in pieces -> (dynamic, static), each as one `ScoredPiece`."""
    parts = list(dynamic_score_pieces(model, params, pieces, **{"seq_len": SEQ_LEN, **RATES, **options}))
    return tuple(type(kind[0])(*map(np.concatenate, zip(*kind, strict=True))) for kind in zip(*parts, strict=True))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 4 segments, so that every text is of several."""
    monkeypatch.setattr(DYNAMIC, "CHUNK", BLOCK)


# ---- the plain loop


def plain_loss(params, before, carry, labels, count):
    """Sum of nats of the first `count` of labels [SEQ_LEN] over SEQ_LEN, by another LSTM -> (it, (nats, carry))."""
    nats = []
    for character, label in zip([before, *labels[:-1]], labels, strict=True):
        x, after = jnp.eye(V)[character], []
        for layer, (c_before, h_before) in enumerate(carry):
            cell = params[f"layer_{layer}"]["cell"]
            i, f, g, o = jnp.split(x @ cell["w_ih"] + h_before @ cell["w_hh"] + cell["bias"], 4)
            c = c_before / (1 + jnp.exp(-f)) + jnp.tanh(g) / (1 + jnp.exp(-i))
            x = jnp.tanh(c) / (1 + jnp.exp(-o))
            after.append((c, x))
        carry = after
        logits = x @ params["head"]["kernel"] + params["head"]["bias"]
        nats.append(jnp.log(jnp.sum(jnp.exp(logits))) - logits[label])
    nats = jnp.stack(nats)
    return jnp.sum(jnp.where(jnp.arange(SEQ_LEN) < count, nats, 0)) / SEQ_LEN, (nats, carry)


PLAIN_GRAD = jax.jit(jax.value_and_grad(plain_loss, has_aux=True))


def plain_read(params, squares, documents, *, learning_rate, decay):
    """The rule of Krause et al. in a loop over segments -> (nats of all characters, weights after, squares)."""
    first, leaves = jax.tree.map(np.asarray, params), jax.tree.leaves
    params, nats = first, []
    for document in documents:
        bias = params["head"]["bias"]
        nats.append(np.log(np.exp(bias).sum()) - bias[document[0]])
        carry = [(np.zeros(6), np.zeros(6))] * 2
        for at in range(1, len(document), SEQ_LEN):
            labels = document[at : at + SEQ_LEN].astype(int)
            # Padded, so that it compiles once; only a document's last segment is, whose carry is not used.
            padded = np.pad(labels, (0, SEQ_LEN - len(labels)))
            (_, (found, carry)), grads = PLAIN_GRAD(params, int(document[at - 1]), carry, padded, len(labels))
            nats.extend(np.asarray(found)[: len(labels)])
            grads = jax.tree.map(np.asarray, grads)
            squares = [*squares, jax.tree.map(np.square, grads)]
            rms = jax.tree.map(lambda *each: np.sqrt(np.mean(each, axis=0)), *squares)
            mean = np.concatenate([leaf.ravel() for leaf in leaves(rms)]).mean()
            pull = decay * len(labels) / SEQ_LEN

            def move(first, now, grad, r, mean=mean, pull=pull):
                decayed = np.minimum(pull * r / mean, 1) * (first - now)
                return now - learning_rate * grad / (r + 0.1 * mean) + decayed

            params = jax.tree.map(move, first, params, grads, rms)
    return np.array(nats), params, squares


def in_a_plain_loop(documents, train_ids=None):
    with jax.enable_x64(True):
        params, squares = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS), []
        if train_ids is not None:
            still = {"learning_rate": 0.0, "decay": 0.0}
            _, _, squares = plain_read(params, squares, [train_ids], **still)
        nats, after, _ = plain_read(params, squares, documents, **RATES)
    assert nats.dtype == np.float64
    return nats, after


@pytest.mark.parametrize("train_ids", [None, TRAIN_IDS])
def test_it_is_a_plain_loop_over_segments(train_ids):
    found = dynamic(IDS, train_ids=train_ids)
    nats, after = in_a_plain_loop([IDS], train_ids)
    assert (found.nats.shape, found.nats.dtype) == ((202,), np.float32)
    np.testing.assert_allclose(found.nats, nats[1:], atol=2e-4)
    for mine, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)
    # They have moved far, or the comparison would mean little.
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after, PARAMS)), strict=True)) > 0.1
    np.testing.assert_array_equal(found.static_nats, score(MODEL, PARAMS, IDS[None])[0])
    assert found.loss == pytest.approx(nats[1:].mean(), abs=1e-5)
    assert found.static_loss == pytest.approx(found.static_nats.mean(), abs=1e-5)


def test_documents_start_from_an_empty_state_with_weights_that_have_learned():
    separator = IDS[17:19]
    learned, static = joined([IDS[:50], IDS[50:]], separator=separator, train_ids=TRAIN_IDS)
    places = np.flatnonzero(static.begins)
    assert len(places) > 9
    nats, _ = in_a_plain_loop(np.split(IDS, places[1:]), TRAIN_IDS)
    np.testing.assert_allclose(learned.nats, nats, atol=2e-4)
    assert np.abs(learned.nats - static.nats)[places[1:]].max() > 2e-3


# ---- what it must not depend on


def test_without_learning_it_is_static():
    found = dynamic(IDS, learning_rate=0)
    np.testing.assert_allclose(found.nats, score(MODEL, PARAMS, IDS[None])[0], atol=1e-5)
    for mine, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_no_score_knows_what_comes_after_it():
    before = dynamic(IDS).nats
    for place in (1, 5, 6, 58, 120, 202):
        changed = IDS.copy()
        changed[place] = (changed[place] + 1) % V
        after = dynamic(changed).nats
        np.testing.assert_array_equal(after[: place - 1], before[: place - 1])
        assert after[place - 1] != before[place - 1]
    np.testing.assert_array_equal(dynamic(IDS[:77]).nats, before[:76])


def test_the_chunk_does_not_matter_at_all(monkeypatch):
    expected = dynamic(IDS)
    monkeypatch.setattr(DYNAMIC, "CHUNK", 50 * SEQ_LEN + 2)
    found = dynamic(IDS)
    np.testing.assert_array_equal(found.nats, expected.nats)
    np.testing.assert_array_equal(found.static_nats, expected.static_nats)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_pieces_do_not_matter_at_all():
    expected = joined([IDS], top=3)
    np.testing.assert_array_equal(expected[0].nats[1:], dynamic(IDS).nats)
    for size in (1, 7, 300):
        found = joined([IDS[:0], *(IDS[at : at + size] for at in range(0, len(IDS), size))], top=3)
        for mine, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_one_compilation_serves_every_length_and_rate():
    dynamic(IDS)
    before = _adapt._cache_size()
    for length in (2, 3, 6, 7, 203):
        assert dynamic(IDS[:length], learning_rate=0.1 / length, decay=1).nats.shape == (length - 1,)
    dynamic(IDS, train_ids=TRAIN_IDS)
    assert _adapt._cache_size() == before


def test_the_callers_weights_do_not_change():
    given = jax.tree.map(jnp.array, PARAMS)
    once = dynamic_score(MODEL, given, IDS, seq_len=SEQ_LEN, **RATES)
    jax.tree.map(np.testing.assert_array_equal, given, PARAMS)
    np.testing.assert_array_equal(dynamic(IDS).nats, once.nats)


# ---- what it is for


def test_a_text_that_repeats_itself_is_predicted_better_and_better():
    text = np.tile(IDS[:30], 40)
    found = dynamic(text, learning_rate=0.02, decay=0.0)
    before, after = found.static_nats[-300:].mean(), found.nats[-300:].mean()
    assert after < 0.3 * before
    assert score(MODEL, found.params, text[None])[0].mean() < 0.5 * before


def test_the_most_likely_characters_come_with_their_probabilities():
    learned, static = joined([IDS], top=3)
    assert (learned.top_ids.shape, learned.top_probs.dtype) == ((203, 3), np.float32)
    assert np.all(np.diff(learned.top_probs) <= 0)
    places, ranks = np.nonzero(learned.top_ids == IDS[:, None])
    np.testing.assert_allclose(-np.log(learned.top_probs[places, ranks]), learned.nats[places], atol=1e-4)
    np.testing.assert_array_equal(learned.ids, static.ids)
    assert np.abs(learned.top_probs - static.top_probs).max() > 0.01


def test_bfloat16_learns_in_float32():
    model = MODEL.clone(dtype="bfloat16")
    found = dynamic_score(model, PARAMS, IDS, seq_len=SEQ_LEN, **RATES)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.nats, dynamic(IDS).nats, atol=0.2)
    assert found.loss < found.static_loss


# ---- texts at the edge


def test_two_characters_and_one_segment_longer_than_the_text():
    np.testing.assert_allclose(dynamic(IDS[:2]).nats, score(MODEL, PARAMS, IDS[None, :2])[0], atol=1e-6)
    whole = dynamic(IDS[:BLOCK], seq_len=BLOCK)
    np.testing.assert_allclose(whole.nats, whole.static_nats, atol=1e-5)
    (learned, static) = joined([IDS[:1]])
    np.testing.assert_allclose(learned.nats, static.nats, atol=1e-6)
    assert not list(dynamic_score_pieces(MODEL, PARAMS, []))


def test_a_vocabulary_of_one_character_has_nothing_to_learn():
    model = CharLSTM(1, hidden_dim=4, hidden_layers=1)
    params = init_params(jax.random.key(0), model)
    for train_ids in (None, np.zeros(40, int)):
        found = dynamic_score(model, params, np.zeros(50, int), train_ids=train_ids)
        np.testing.assert_array_equal(found.nats, np.zeros(49))
        jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_a_large_vocabulary():
    vocab = Vocab.from_text("".join(map(chr, range(256, 3000))))
    model = CharLSTM(vocab.size, hidden_dim=4, hidden_layers=1)
    ids = vocab.encode("āăąćĉ" * 9)
    found = dynamic_score(model, init_params(jax.random.key(0), model), ids, seq_len=SEQ_LEN)
    assert np.isfinite(found.nats).all()
    assert found.loss < found.static_loss


def test_only_stretches_of_a_long_training_text_are_read(monkeypatch):
    monkeypatch.setattr(DYNAMIC, "MEASURED", 60)
    monkeypatch.setattr(DYNAMIC, "STRETCHES", 3)
    train_ids = RNG.integers(0, V, 1000)
    stretches = [train_ids[begin : begin + 20] for begin in (0, 490, 980)]
    assert [ids.tolist() for ids, _ in DYNAMIC._stretches(train_ids)] == [ids.tolist() for ids in stretches]
    assert [begins.tolist() for _, begins in DYNAMIC._stretches(train_ids)] == [[True] + [False] * 19] * 3
    expected = dynamic(IDS, train_ids=train_ids).nats
    # What lies between is not read.
    train_ids[20:490] = 0
    np.testing.assert_array_equal(dynamic(IDS, train_ids=train_ids).nats, expected)


# ---- memory


def test_a_long_text_takes_no_more_memory_than_a_short_one():
    joined([IDS])
    tracemalloc.start()
    pieces = dynamic_score_pieces(MODEL, PARAMS, itertools.repeat(IDS, 100), seq_len=SEQ_LEN, **RATES)
    characters = sum(len(piece.dynamic.ids) for piece in pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 20_300
    assert peak < 400_000


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "seq_len must be a whole number from 1 to 4000, not 0"),
        ({"seq_len": 4001}, "seq_len must be a whole number from 1 to 4000, not 4001"),
        ({"seq_len": 2.0}, "seq_len must be a whole number from 1 to 4000, not 2.0"),
        ({"seq_len": True}, "seq_len must be a whole number from 1 to 4000, not True"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0 and finite, not -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0 and finite, not nan"),
        ({"decay": float("inf")}, "decay must be at least 0 and finite, not inf"),
        ({"decay": "1"}, "decay must be at least 0 and finite, not '1'"),
        ({"train_ids": IDS[:1]}, "train_ids must contain at least 2 characters, not 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        dynamic(IDS, **options)
    with pytest.raises(UserError, match=message):
        joined([IDS], **options)


def test_bad_texts():
    for ids in (IDS[:0], IDS[:1]):
        with pytest.raises(UserError, match=f"ids must contain at least 2 characters, not {len(ids)}"):
            dynamic(ids)
    for bad, message in (
        (IDS[None], r"must be \[N\] integers, but has shape \(1, 203\) and dtype uint8"),
        (IDS.astype(float), r"must be \[N\] integers, but has shape \(203,\) and dtype float64"),
        (np.array([0, V]), r"must be in \[0, 11\), but the values range from 0 to 11"),
        (np.array([-1, 0]), r"must be in \[0, 11\), but the values range from -1 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dynamic(bad)
        with pytest.raises(ValueError, match="train_ids " + message):
            dynamic(IDS, train_ids=bad)
    with pytest.raises(ValueError, match="must be in"):
        joined([np.array([0, V])])


def test_weights_that_diverge_are_an_error():
    diverged = r"diverged within [\d,]+ characters, .*; use a learning rate below 3e\+38"
    for length in (203, 6):  # after a single segment only the weights show it
        with pytest.raises(UserError, match=diverged):
            dynamic(IDS[:length], train_ids=TRAIN_IDS, learning_rate=3e38)


def test_a_model_that_diverged_in_training_is_an_error():
    broken = dict(PARAMS, head=jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), PARAMS["head"]))
    with pytest.raises(UserError, match="the model's predictions are not finite; train the model again"):
        dynamic_score(MODEL, broken, IDS, seq_len=SEQ_LEN)
    with pytest.raises(UserError, match="gradients on its training text are not finite; train the model again"):
        dynamic_score(MODEL, broken, IDS, seq_len=SEQ_LEN, train_ids=TRAIN_IDS)
