"""evaluate: exact, on any number of devices, compiled once."""

import jax
import numpy as np
import pytest
from helpers.compilations import compilations

from charjax.data.batching import make_streams
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.errors import UserError
from charjax.metrics import cross_entropy
from charjax.model import CharLSTM, init_carry, init_params
from charjax.training.evaluate import evaluate, make_eval_step

V = 17


def make(length):
    model = CharLSTM(V, hidden_dim=12, hidden_layers=2, dropout=0.5)
    params = init_params(jax.random.key(0), model)
    ids = np.random.default_rng(0).integers(0, V, length).astype(np.uint8)
    return model, params, ids


def in_one_pass(model, params, ids):
    logits, _ = model.apply({"params": params}, ids[None, :-1], init_carry(model, 1))
    return float(np.mean(cross_entropy(logits, ids[None, 1:])))


@pytest.mark.parametrize("length", [2, 3, 150, 2001, 9000])
def test_the_loss_equals_one_pass_over_the_text(length):
    model, params, ids = make(length)
    expected = in_one_pass(model, params, ids)
    assert evaluate(model, params, ids, mesh=make_mesh(jax.devices()[:1])) == pytest.approx(expected, abs=2e-5)


def test_the_number_of_devices_does_not_matter():
    model, params, ids = make(9000)
    one = evaluate(model, params, ids, mesh=make_mesh(jax.devices()[:1]))
    assert evaluate(model, params, ids) == pytest.approx(one, abs=2e-5)


def test_the_window_does_not_matter():
    model, params, ids = make(1000)
    losses = []
    for seq_len in (7, 50, 999):
        streams = put_streams(make_streams(ids, batch_size=1, seq_len=seq_len), make_mesh(jax.devices()[:1]))
        metrics, _ = make_eval_step(model, seq_len=seq_len, mesh=make_mesh(jax.devices()[:1]))(params, streams)
        assert int(np.asarray(metrics.chars).sum()) == 999
        losses.append(float(np.asarray(metrics.nats, np.float64).sum()) / 999)
    np.testing.assert_allclose(losses, in_one_pass(model, params, ids), atol=2e-5)


def test_evaluating_the_same_model_again_compiles_nothing():
    model, params, ids = make(400)
    with compilations() as compiled:
        first = evaluate(model, params, ids)
    assert compiled
    with compilations() as compiled:
        assert evaluate(model.clone(), params, ids) == first
    assert compiled == []


def test_a_text_with_nothing_to_predict_is_refused():
    model, params, ids = make(1)
    with pytest.raises(UserError, match="nothing to predict"):
        evaluate(model, params, ids)
