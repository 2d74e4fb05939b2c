"""A text that grows in pieces and turns is the text written at once."""

import functools

import jax
import numpy as np
import pytest

from charjax.config import SampleConfig
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.generation.generate import generate_text
from charjax.generation.session import Session
from charjax.model import CharLSTM, init_params

VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2)
PARAMS = init_params(jax.random.key(0), MODEL)
by_both = pytest.mark.parametrize("model", [MODEL, MODEL.clone(implementation="scan")], ids=["native", "xla"])


def write(model, context, config, length=None, **options):
    """What a session writes after a context."""
    session = Session(model, PARAMS, VOCAB, config, **options)
    session.read(VOCAB.encode(context))
    return "".join(session.write(length))


@by_both
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 300, 1000])
def test_pieces_add_up_to_the_whole(model, length):
    config = SampleConfig(temperature=0.9, top_k=50, seed=5)
    whole = generate_text(model, PARAMS, VOCAB, "ab", length=length, temperature=0.9, top_k=50, seed=5)
    assert [write(model, "ab", config, length)] == whole


def test_without_a_length_it_does_not_end():
    session = Session(MODEL, PARAMS, VOCAB, SampleConfig())
    session.read(VOCAB.encode("a"))
    pieces = session.write()
    assert len("".join(next(pieces) for _ in range(10))) > 160


@by_both
def test_turns_share_one_state(model):
    """What a session writes after two turns is what follows all of its text."""
    config = SampleConfig(temperature=0)
    session = Session(model, PARAMS, VOCAB, config)
    text = ""
    for turn, length in (("coffee", 5), (" and ", 21), ("tea", 16)):
        session.read(VOCAB.encode(turn))
        text += turn
        (expected,) = generate_text(model, PARAMS, VOCAB, text, length=length, temperature=0)
        assert "".join(session.write(length)) == expected
        text += expected


def test_turns_do_not_repeat_each_others_noise():
    session = Session(MODEL, PARAMS, VOCAB, SampleConfig(seed=1))
    turns = []
    for _ in range(3):
        session.read(VOCAB.encode("a"))
        turns.append("".join(session.write(20)))
    assert len(set(turns)) == 3


@pytest.mark.parametrize(
    ("model", "places"),
    # XLA compiles for each length that is read.
    [(MODEL, (14, 15, 16, 40, 250)), (MODEL.clone(implementation="scan"), (15, 40))],
    ids=["native", "xla"],
)
def test_a_stop_string_across_pieces(model, places):
    at_once = functools.partial(generate_text, model, PARAMS, VOCAB, "ab", length=400, seed=2)
    (whole,) = at_once()
    for place in places:
        stop = whole[place : place + 4]
        (expected,) = at_once(stop=stop)
        session = Session(model, PARAMS, VOCAB, SampleConfig(seed=2), stop=stop)
        session.read(VOCAB.encode("ab"))
        assert "".join(session.write(400)) == expected
        # The state is that after the stop string, not that after what was sampled ahead.
        assert _next_greedy(session) == write(model, "ab" + expected, SampleConfig(temperature=0, seed=9), 10)


def _next_greedy(session):
    greedy = session._sampling.settings._replace(temperature=np.zeros(1, np.float32))
    session._sampling = session._sampling._replace(settings=greedy)
    session._stop = None
    return "".join(session.write(10))


@pytest.mark.parametrize("stop", ["", "é"])
def test_a_stop_that_cannot_occur(stop):
    with pytest.raises(UserError, match="cannot be used"):
        Session(MODEL, PARAMS, VOCAB, SampleConfig(), stop=stop)


def test_a_character_cut_by_the_end_of_a_piece_stays_whole(monkeypatch):
    content = np.frombuffer("é😀\u00fc".encode() + b"\xf0", np.uint8)
    monkeypatch.setattr(Session, "write_ids", lambda *_: (content[i : i + 1] for i in range(len(content))))
    model = CharLSTM(256, hidden_dim=10, hidden_layers=1)
    params = init_params(jax.random.key(0), model)
    pieces = list(Session(model, params, Vocab.bytes(), SampleConfig()).write())
    assert [piece for piece in pieces if piece] == ["é", "😀", "ü", "\ufffd"]
