"""Training leaves the parameters replicated on every device: all other functions take them as they are."""

import jax
import numpy as np
import pytest

from charjax import beam_search, dynamic_score, dynamic_score_pieces, generate, score, unit_correlations
from charjax.analysis.activations import activations
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import make_mesh, put_replicated
from charjax.generation.session import Session
from charjax.model import CharLSTM, init_params
from charjax.training.evaluate import evaluate

VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2)
PARAMS = init_params(jax.random.key(0), MODEL)
IDS = VOCAB.encode("coffee and mocha, coffee or tea. " * 3)


def dynamic_pieces(params):
    return [
        (piece.dynamic.nats, piece.static.nats)
        for piece in dynamic_score_pieces(MODEL, params, [IDS], train_ids=IDS[:40], seq_len=10)
    ]


USES = {
    "activations": lambda params: activations(MODEL, params, IDS[None]),
    "beam_search": lambda params: beam_search(MODEL, params, IDS[:9], length=5, beam_width=3),
    "dynamic_score": lambda params: dynamic_score(MODEL, params, IDS, train_ids=IDS[:40], seq_len=10),
    "dynamic_score_pieces": dynamic_pieces,
    "evaluate": lambda params: evaluate(MODEL, params, IDS),
    "generate": lambda params: generate(MODEL, params, IDS[None, :9], key=jax.random.key(3), length=9),
    "score": lambda params: score(MODEL, params, IDS[None]),
    "session": lambda params: list(Session(MODEL, params, VOCAB, SampleConfig()).write_ids(9)),
    "unit_correlations": lambda params: unit_correlations(MODEL, params, VOCAB, IDS),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_replicated_parameters_give_the_same_results(use):
    everywhere = put_replicated(PARAMS, make_mesh())
    assert len(jax.tree.leaves(everywhere)[0].sharding.device_set) == jax.device_count() > 1
    found, expected = use(everywhere), use(PARAMS)
    for leaf, expected_leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, expected_leaf)
