"""Training that starts from the weights of another model."""

import logging

import jax
import numpy as np
import pytest
from helpers.small_run import small_corpus, small_model

from charjax import CharLSTM, Corpus, History, UserError, Vocab, fit, init_carry, init_params, load_model
from charjax.distributed.mesh import make_mesh
from charjax.runs.metadata import FitInfo, Progress, RunInfo
from charjax.runs.model_file import read_info, read_run, write_info, write_parameters
from charjax.training.initial_params import initial_params

MESH = make_mesh(jax.devices()[:1])
ENGLISH = "The barista brews a flat white, and grandmother drinks three cups of mocha at midnight. "
# Of the same words in another order, with four characters more.
OTHER = "At midnight grandmother brews three flat whites, \u00e9 \u00e0 \u00fc, and the barista drinks a cup of mocha. "


def other_model(corpus, **options):
    return CharLSTM(corpus.vocab.size, **{"hidden_dim": 12, "hidden_layers": 2, **options})


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """A model of English, its corpus and its folder."""
    corpus = Corpus.from_text(ENGLISH * 40, vocab="chars")
    out = tmp_path_factory.mktemp("english") / "run"
    fit(other_model(corpus), corpus, mesh=MESH, progress=False, out=out, epochs=30, batch_size=8, seq_len=16)
    return other_model(corpus), corpus, out


def log_probabilities(model, params, ids):
    logits, _ = model.apply({"params": params}, ids[None], init_carry(model, 1))
    return np.asarray(jax.nn.log_softmax(logits[0]))


def test_known_characters_keep_their_predictions_in_another_vocabulary(english):
    earlier, corpus, out = english
    _, old, _ = load_model(out)
    vocab = Vocab.from_text(ENGLISH + OTHER)
    model = other_model(Corpus.from_text(OTHER * 40, vocab="chars"), dropout=0.1).clone(vocab_size=vocab.size)
    new, _ = initial_params(out, model, vocab, seed=0)
    text = ENGLISH[:50]
    before = log_probabilities(earlier, old, corpus.vocab.encode(text))
    after = log_probabilities(model, new, vocab.encode(text))
    known = vocab.encode(corpus.vocab.characters)
    # Every known character loses the same small part of its probability to the new ones.
    lost = before - after[:, known]
    np.testing.assert_allclose(lost, lost[:, :1].repeat(len(known), 1), atol=2e-3)
    assert lost.min() >= 0
    assert lost.max() < 0.1
    assert vocab.size == len(known) + 4


def test_the_same_vocabulary_keeps_every_weight(english):
    earlier, corpus, out = english
    params, step = initial_params(out, earlier, corpus.vocab, seed=0)
    assert step == read_run(out)[1].model_step
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(load_model(out)[1]))


@pytest.mark.parametrize(
    ("earlier", "vocab", "known"),
    [
        (Vocab.ascii(), Vocab.from_text("ab\u00e9"), {0: 97, 1: 98}),
        (Vocab.from_text("ab\u00e9"), Vocab.ascii(), {97: 0, 98: 1}),
        (Vocab.bytes(), Vocab.from_text("a\u00e9"), {0: 97}),
        (Vocab.from_text("a\u00e9"), Vocab.bytes(), {97: 0}),
        pytest.param(Vocab.ascii(), Vocab.bytes(), {code: code for code in range(128)}, marks=pytest.mark.slow),
        pytest.param(Vocab.bytes(), Vocab.bytes(), {code: code for code in range(256)}, marks=pytest.mark.slow),
    ],
)
def test_rows_and_columns_go_with_their_characters(tmp_path, earlier, vocab, known):
    model = CharLSTM(earlier.size, hidden_dim=4, hidden_layers=1)
    params = jax.device_get(init_params(jax.random.key(1), model))
    new_model = CharLSTM(vocab.size, hidden_dim=4, hidden_layers=1)
    new, step = initial_params(write_model(tmp_path / "model", model, params, earlier), new_model, vocab, seed=7)
    assert step == 3
    fresh = jax.device_get(init_params(jax.random.key(7), new_model))
    for ours in range(vocab.size):
        source, theirs = (params, known[ours]) if ours in known else (fresh, ours)
        np.testing.assert_array_equal(new["layer_0"]["cell"]["w_ih"][ours], source["layer_0"]["cell"]["w_ih"][theirs])
        np.testing.assert_array_equal(new["head"]["kernel"][:, ours], source["head"]["kernel"][:, theirs])
        assert new["head"]["bias"][ours] == 0  # as in every new model, so the least one is, too
    np.testing.assert_array_equal(new["layer_0"]["cell"]["w_hh"], params["layer_0"]["cell"]["w_hh"])


def write_model(folder, model, params, vocab):
    folder.mkdir()
    write_info(folder, RunInfo(model=model.config, vocab=vocab))
    write_parameters(folder, params, Progress(step=3))
    return folder


def test_fine_tuning_beats_training_from_nothing_on_a_small_text(english, caplog):
    """By at least half a nat per character after two passes over 900 characters."""
    _, _, out = english
    corpus = Corpus.from_text(OTHER * 10, vocab="chars")
    model = other_model(corpus)

    def loss(**options):
        history = History()
        fit(model, corpus, mesh=MESH, reporter=history, epochs=2, batch_size=4, seq_len=16, sample_length=0, **options)
        return history.evaluations[-1].val_loss

    with caplog.at_level(logging.INFO, logger="charjax"):
        tuned = loss(init_from=out)
    (said,) = [record.getMessage() for record in caplog.records if "starting from" in record.getMessage()]
    assert "; 4 of" in said
    assert "characters are new to it: " in said
    assert "'\u00e9' (U+00E9)" in said
    assert tuned < loss() - 0.5


def test_a_run_says_where_it_started(english, tmp_path):
    _, _, out = english
    corpus = Corpus.from_text(OTHER * 10, vocab="chars")
    options = {"batch_size": 4, "seq_len": 16, "epochs": 0.2, "sample_length": 0, "progress": False}
    fit(other_model(corpus), corpus, mesh=MESH, out=tmp_path / "run", init_from=out, **options)
    fit(other_model(corpus), corpus, mesh=MESH, out=tmp_path / "run", resume=True, **options | {"epochs": 0.4})
    began = read_run(tmp_path / "run")[0].fit
    assert began == FitInfo(init_from=str(out), init_step=read_run(out)[1].model_step, replaces="")
    assert str(out) in read_info(tmp_path / "run").options()["init_from"]


@pytest.mark.parametrize("wrong", [{"hidden_dim": 13}, {"hidden_layers": 1}])
def test_another_size_is_refused(english, wrong):
    _, corpus, out = english
    (name,) = wrong
    with pytest.raises(UserError, match=f"trained with --{name.replace('_', '-')} .* to start from it, train with --"):
        fit(other_model(corpus, **wrong), corpus, mesh=MESH, init_from=out, progress=False, batch_size=4)


def test_a_folder_without_a_model_is_refused(tmp_path):
    corpus = small_corpus()
    with pytest.raises(UserError, match="is not a run folder or a model"):
        fit(small_model(corpus), corpus, mesh=MESH, init_from=tmp_path, progress=False, batch_size=4)
