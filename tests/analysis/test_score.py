"""Scores are those of one pass over the text, however it is cut, in constant memory."""

import functools
import importlib
import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax import score as score_function
from charjax.analysis.score import BURN_IN, _score_chunk, score_pieces
from charjax.data.batching import make_streams
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.errors import UserError
from charjax.metrics import cross_entropy
from charjax.model import CharLSTM, init_carry, init_params
from charjax.training.evaluate import make_eval_step

SCORE_MODULE = importlib.import_module("charjax.analysis.score")  # the package's own name of it is the function
V = 17
MODEL = CharLSTM(V, hidden_dim=12, hidden_layers=2, dropout=0.5)
FORGETFUL = init_params(jax.random.key(0), MODEL)
# A network that remembers its first characters forever.
PARAMS = jax.tree.map(lambda leaf: 2 * leaf + 0.1, FORGETFUL)
IDS = np.random.default_rng(0).integers(0, V, 1000).astype(np.uint8)
score = functools.partial(score_function, MODEL, PARAMS)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, ids):
    """Logits of every character of one document, [N, V], the first from the head's bias."""
    logits, _ = model.apply({"params": PARAMS}, ids[None, :-1], init_carry(model, 1))
    return jnp.concatenate([PARAMS["head"]["bias"][None], logits[0]])


def in_one_pass(ids):
    """-log p of every character of one document."""
    # One length for all: what follows a document does not change what came before.
    return np.asarray(cross_entropy(logits_of(MODEL, np.resize(ids, len(IDS))), np.resize(ids, len(IDS))))[: len(ids)]


def joined(pieces, params=PARAMS, **options):
    """Scores a text that comes in pieces -> one `ScoredPiece`."""
    parts = list(score_pieces(MODEL, params, pieces, **options))
    return type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


# ---- score


def test_it_is_one_pass_over_the_text():
    nats = score(IDS[None])
    assert (nats.shape, nats.dtype) == ((1, 999), np.float32)
    np.testing.assert_allclose(nats[0], in_one_pass(IDS)[1:], atol=1e-5)


@pytest.mark.parametrize("streams", [1, 2])
def test_both_decoders_give_the_same_scores(streams, monkeypatch):
    monkeypatch.setattr(SCORE_MODULE, "STRETCH", 100)
    options = {"separator": IDS[100:103], "top": 3, "streams": streams}
    by_xla = list(score_pieces(MODEL.clone(implementation="scan"), PARAMS, [IDS], **options))
    by_default = list(score_pieces(MODEL, PARAMS, [IDS], **options))
    for mine, other in zip(by_default, by_xla, strict=True):
        np.testing.assert_array_equal(mine.begins, other.begins)
        np.testing.assert_allclose(mine.nats, other.nats, atol=1e-5)
        np.testing.assert_allclose(mine.top_probs, other.top_probs, atol=1e-5)


@pytest.mark.parametrize(("implementation", "windows"), [(None, (1, 7, 64, 299, 300, 301)), ("scan", (13,))])
def test_the_window_does_not_matter_at_all(implementation, windows):
    expected = score_function(MODEL.clone(implementation=implementation), PARAMS, IDS[None, :300])
    for window in windows:
        found = score_function(MODEL.clone(implementation=implementation), PARAMS, IDS[None, :300], window=window)
        np.testing.assert_array_equal(found, expected)


def test_its_mean_is_the_loss():
    streams = put_streams(make_streams(IDS, batch_size=1, seq_len=111), make_mesh(jax.devices()[:1]))
    metrics, _ = make_eval_step(MODEL, seq_len=111, mesh=make_mesh(jax.devices()[:1]))(PARAMS, streams)
    loss = float(np.asarray(metrics.nats, np.float64).sum()) / int(np.asarray(metrics.chars).sum())
    assert score(IDS[None]).mean(dtype=np.float64) == pytest.approx(loss, abs=1e-5)


def test_one_compilation_serves_every_length():
    score(IDS[None, :2])
    before = _score_chunk._cache_size()
    for length in (1, 3, 255, 256, 257, 700):
        assert score(IDS[None, :length]).shape == (1, length - 1)
    assert _score_chunk._cache_size() == before


def test_rows_are_read_side_by_side():
    rows = IDS[:900].reshape(3, 300)
    nats = score(rows)
    for row, expected in zip(rows, nats, strict=True):
        np.testing.assert_allclose(score(row[None])[0], expected, atol=1e-5)


def test_texts_without_labels_have_no_scores():
    assert score(np.zeros((2, 1), np.int32)).shape == (2, 0)
    assert score(np.zeros((0, 5), np.int32)).shape == (0, 4)


@pytest.mark.parametrize("ids", [IDS, np.zeros((2, 0), np.int32), np.zeros((1, 3)), [[0, V]], [[-1, 0]]])
def test_bad_ids_are_refused(ids):
    with pytest.raises(ValueError, match="ids must"):
        score(ids)


def test_a_window_of_0_is_refused():
    for refused in (lambda: score(IDS[None], window=0), lambda: list(score_pieces(MODEL, PARAMS, [IDS], window=0))):
        with pytest.raises(ValueError, match="window must be a whole number of at least 1, not 0"):
            refused()


def test_bfloat16_is_that_of_the_model():
    model = MODEL.clone(dtype="bfloat16")
    nats = score_function(model, PARAMS, IDS[None])
    np.testing.assert_allclose(nats[0], cross_entropy(logits_of(model, IDS), IDS)[1:], atol=0.02)
    assert np.abs(nats - score(IDS[None])).max() > 1e-4


# ---- score_pieces


def test_pieces_do_not_matter_at_all():
    expected = joined([IDS])
    np.testing.assert_array_equal(expected.nats[1:], score(IDS[None])[0])
    for size in (1, 3, 255, 256, 257):
        whole = joined([IDS[at : at + size] for at in range(0, 1000, size)] + [IDS[:0]])
        for mine, other in zip(whole, expected, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_most_likely_characters_come_with_their_probabilities():
    whole = joined([IDS], top=3)
    probs = np.asarray(jax.nn.softmax(logits_of(MODEL, IDS)))
    assert (whole.top_ids.shape, whole.top_probs.shape) == ((1000, 3), (1000, 3))
    np.testing.assert_allclose(whole.top_probs, -np.sort(-probs, axis=1)[:, :3], rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(probs, whole.top_ids, 1), whole.top_probs, rtol=1e-4)
    assert joined([IDS[:5]], top=1000).top_ids.shape == (5, V)


def test_every_document_is_read_from_an_empty_state():
    separator = IDS[100:103]
    whole = joined([IDS[:50], IDS[50:101], IDS[101:]], separator=separator, window=32)
    places = np.flatnonzero(whole.begins)
    assert {0, 103} <= set(places)
    for begin, end in zip(places, [*places[1:], 1000], strict=True):
        np.testing.assert_allclose(whole.nats[begin:end], in_one_pass(IDS[begin:end]), atol=1e-5)


def test_argmax_writes_the_most_likely_characters():
    from charjax import generate

    written = np.asarray(
        generate(MODEL, PARAMS, np.zeros((1, 0), int), key=jax.random.key(1), length=50, temperature=0)
    )
    whole = joined([written[0]], top=1)
    np.testing.assert_array_equal(whole.top_ids[:, 0], written[0])
    np.testing.assert_allclose(whole.nats, -np.log(whole.top_probs[:, 0]), atol=1e-5)


def test_an_empty_text_has_no_pieces_and_an_empty_separator_is_refused():
    assert not list(score_pieces(MODEL, PARAMS, []))
    with pytest.raises(UserError, match="separator is empty"):
        list(score_pieces(MODEL, PARAMS, [IDS], separator=IDS[:0]))


# ---- streams


@pytest.mark.parametrize("streams", [2, 3, 32])
@pytest.mark.parametrize("length", [1, 2, 5, 300, 1000])
def test_streams_are_near_to_one_pass(streams, length, monkeypatch):
    monkeypatch.setattr(SCORE_MODULE, "STRETCH", 150)
    exact, near = (joined([IDS[:length]], FORGETFUL, top=2, streams=number) for number in (1, streams))
    np.testing.assert_array_equal(near.ids, exact.ids)
    np.testing.assert_array_equal(near.begins, exact.begins)
    # This close to the start, every stream has read the whole text.
    np.testing.assert_allclose(near.nats[:BURN_IN], exact.nats[:BURN_IN], atol=1e-5)
    np.testing.assert_allclose(near.nats, exact.nats, atol=1e-4)
    np.testing.assert_allclose(near.top_probs, exact.top_probs, atol=1e-4)


def test_streams_see_documents_that_began_before_them(monkeypatch):
    monkeypatch.setattr(SCORE_MODULE, "STRETCH", 40)
    separator = IDS[100:102]
    exact, near = (joined([IDS], FORGETFUL, separator=separator, streams=streams) for streams in (1, 3))
    assert exact.begins.sum() > 3
    np.testing.assert_array_equal(near.begins, exact.begins)
    np.testing.assert_allclose(near.nats, exact.nats, atol=1e-3)


def test_0_streams_are_refused():
    with pytest.raises(ValueError, match="streams must be a whole number of at least 1, not 0"):
        list(score_pieces(MODEL, PARAMS, [IDS], streams=0))


# ---- memory


@pytest.mark.parametrize("streams", [1, 2])
def test_pieces_are_taken_only_when_needed(streams, monkeypatch):
    monkeypatch.setattr(SCORE_MODULE, "STRETCH", 256)
    asked = 0

    def pieces():
        nonlocal asked
        while True:
            asked += 1
            yield IDS[:100]

    scored = score_pieces(MODEL, PARAMS, pieces(), streams=streams)
    read = sum(len(next(scored).ids) for _ in range(3))
    # The chunk in progress, and the start of the next.
    assert 100 * asked <= read + 2 * 256 * streams


def test_a_long_text_takes_no_more_memory_than_a_short_one():
    """The scores by themselves would take 4 MB if they were kept."""
    joined([IDS], top=2)
    tracemalloc.start()
    characters = sum(len(piece.ids) for piece in score_pieces(MODEL, PARAMS, itertools.repeat(IDS, 200), top=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 200_000
    assert peak < 1_000_000


def test_bytes_are_scored_like_any_ids():
    vocab = Vocab.bytes()
    model = CharLSTM(vocab.size, hidden_dim=4, hidden_layers=1)
    params = init_params(jax.random.key(0), model)
    assert score_function(model, params, vocab.encode("Grüße")[None]).shape == (1, 6)
