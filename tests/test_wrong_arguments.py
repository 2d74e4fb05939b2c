"""Whatever a caller mistakes for an argument is named in one line, before anything is computed or written."""

import dataclasses
import inspect
import operator
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from helpers.small_run import SMALL, TEXT

import charjax
from charjax import (
    CharLSTM,
    Corpus,
    History,
    LSTMWeights,
    TrainState,
    Vocab,
    evaluate,
    fit,
    generate,
    generate_text,
    init_carry,
    init_params,
    init_train_state,
    load_model,
    make_eval_step,
    make_mesh,
    make_streams,
    make_train_step,
    ops,
    put_streams,
    restore_checkpoint,
    score,
    score_pieces,
    unit_activations,
)
from charjax.config import SampleConfig
from charjax.errors import UserError
from charjax.generation.session import Session
from charjax.ops.lstm.api import lstm_stack
from charjax.runs.compatibility import describe_run
from charjax.runs.metadata import Progress
from charjax.train_state import abstract_train_state

CORPUS = Corpus.from_text(TEXT, vocab="chars")
VOCAB, IDS = CORPUS.vocab, CORPUS.vocab.encode("a flat white")
MODEL = CharLSTM(VOCAB.size, hidden_dim=4, hidden_layers=2)
PARAMS = init_params(jax.random.key(0), MODEL)
KEY, MESH, OPTIMIZER = jax.random.key(1), make_mesh(jax.devices()[:1]), optax.sgd(0.1)
STREAMS = make_streams(CORPUS.validation, batch_size=2, seq_len=8)
STATE = TrainState(*[None] * len(dataclasses.fields(TrainState)))
INFO = describe_run(MODEL, CORPUS, SMALL)
MODEL_AND_PARAMS = {"model": MODEL, "params": PARAMS}

# Arguments that each function takes.
TAKEN = {
    "activations": MODEL_AND_PARAMS | {"ids": IDS[None]},
    "beam_search": MODEL_AND_PARAMS
    | {"context": IDS, "length": 3, "beam_width": 2, "length_penalty": 0.0, "end": None},
    "beam_search_text": MODEL_AND_PARAMS
    | {"vocab": VOCAB, "context": "a", "length": 3, "beam_width": 2, "length_penalty": 0.0, "end": None}
    | {"on_unknown": "error"},
    "dynamic_score": MODEL_AND_PARAMS
    | {"ids": IDS, "train_ids": None, "seq_len": 5, "learning_rate": 0.1, "decay": 0.1},
    "dynamic_score_pieces": MODEL_AND_PARAMS
    | {"pieces": [IDS], "separator": None, "top": 0, "train_ids": None, "seq_len": 5, "learning_rate": 0.1, "decay": 0},
    "evaluate": MODEL_AND_PARAMS | {"ids": IDS, "mesh": MESH, "budget": None},
    "fit": {
        "model": MODEL,
        "corpus": CORPUS,
        "config": SMALL,
        "out": None,
        "resume": False,
        "init_from": None,
        "mesh": MESH,
        "learning_rate": None,
        "optimizer": None,
        "progress": False,
        "reporter": None,
        "callbacks": (),
        "trackers": (),
    },
    "generate": MODEL_AND_PARAMS
    | {"context": IDS[None], "key": KEY, "length": 3, "temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    | {"context_lengths": None, "weights": "auto"},
    "generate_text": MODEL_AND_PARAMS
    | {"vocab": VOCAB, "context": "a", "seed": 0, "length": 3, "num_samples": 1, "temperature": 1.0}
    | {"top_k": None, "top_p": None, "min_p": None, "stop": None, "weights": "auto", "on_unknown": "error"},
    "import_model": {"file": __file__, "out": "runs/none", "vocab": None},
    "init_carry": {"model": MODEL, "batch_size": 2},
    "init_params": {"key": KEY, "model": MODEL},
    "init_train_state": {"key": KEY, "model": MODEL, "optimizer": OPTIMIZER, "batch_size": 2, "mesh": MESH},
    "join_processes": {"coordinator": "127.0.0.1:0", "num_processes": 2, "process_id": 1},
    "load_model": {"run_dir": "runs/none"},
    "make_eval_step": {"model": MODEL, "seq_len": 8, "mesh": MESH},
    "make_mesh": {"devices": jax.devices()[:1]},
    "make_optimizer": {"config": SMALL, "total_steps": 9, "learning_rate": None},
    "make_streams": {"ids": IDS, "batch_size": 2, "seq_len": 3, "burn_in": 0},
    "make_train_step": {"model": MODEL, "optimizer": OPTIMIZER, "seq_len": 8, "mesh": MESH}
    | {"steps_per_call": 1, "microbatches": 1},
    "preset": {"name": "tiny", "characters": 9},
    "put_streams": {"tree": STREAMS, "mesh": MESH},
    "data_path": {"name": "coffee.txt"},
    "read_pieces": {"path": __file__, "vocab": "auto", "separator": None, "on_unknown": "error"},
    "restore_checkpoint": {"run_dir": "runs/none", "abstract": STATE},
    "save_checkpoint": {"run_dir": "runs/none", "state": STATE, "info": INFO, "progress": Progress(step=0)},
    "save_model": MODEL_AND_PARAMS | {"out": "runs/none", "vocab": VOCAB},
    "score": MODEL_AND_PARAMS | {"ids": IDS[None], "window": 9},
    "score_pieces": MODEL_AND_PARAMS | {"pieces": [IDS], "separator": None, "top": 0, "streams": 1, "window": 9},
    "sweep": {"model": MODEL, "corpus": CORPUS, "config": SMALL, "learning_rate": 0.1, "dropout": 0.1}
    | {"weight_decay": 0.1, "seeds": 1, "out": None, "mesh": MESH, "progress": False, "reporter": None},
    "unit_activations": MODEL_AND_PARAMS | {"ids": IDS[None], "units": [(0, 1)]},
    "unit_correlations": MODEL_AND_PARAMS | {"vocab": VOCAB, "ids": IDS},
    # Methods.
    "Corpus.from_file": {"path": __file__, "vocab": "auto", "train_frac": 0.9, "memory_mb": None, "separator": None}
    | {"validation": None},
    "Corpus.from_text": {"text": TEXT, "vocab": "auto", "train_frac": 0.9},
    "Vocab": {"kind": "chars", "characters": "ab"},
    "Vocab.from_text": {"text": "ab"},
    "CharLSTM": {"vocab_size": 5, "hidden_dim": 4, "hidden_layers": 1, "dropout": 0.0, "implementation": None},
    "interop.from_torch": {"state_dict": {}},
    "interop.to_torch": {"params": {}},
}


def test_no_function_is_left_out():
    functions = {name for name in charjax.__all__ if inspect.isfunction(getattr(charjax, name))}
    assert functions <= set(TAKEN)
    for name in functions - {"fit", "preset", "sweep"}:
        assert set(inspect.signature(getattr(charjax, name)).parameters) == set(TAKEN[name])


def call(name, arguments):
    result = operator.attrgetter(name)(charjax)(**arguments)
    return list(result) if inspect.isgenerator(result) else result


# JAX says what it cannot put on a device, and anything may be true.
NOT_CHECKED = {("put_streams", "tree"), ("fit", "resume"), ("fit", "progress"), ("sweep", "progress")}
ARGUMENTS = {(name, argument) for name in TAKEN for argument in TAKEN[name]} - NOT_CHECKED


@pytest.mark.parametrize("wrong", [object(), np.zeros((2, 3))], ids=["object", "array"])
@pytest.mark.parametrize(("name", "argument"), sorted(ARGUMENTS))
def test_an_argument_of_another_type_is_named(name, argument, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=argument) as raised:
        call(name, TAKEN[name] | {argument: wrong})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def refuses(message, function, *arguments, **options):
    with pytest.raises(ValueError, match=message) as raised:
        function(*arguments, **options)
    assert "\n" not in str(raised.value)


MISTAKES = [
    ("corpus must be a Corpus, not str; make one with Corpus.from_file", lambda: fit(MODEL, "text.txt")),
    ("model must be a CharLSTM, not Corpus; make one with", lambda: fit(CORPUS, MODEL)),
    ("config must be a TrainConfig, not dict", lambda: fit(MODEL, CORPUS, {})),
    (
        "the preset name must be tiny, small, medium or large, not 'runs/one'",
        lambda: fit(MODEL, CORPUS, "runs/one"),
    ),
    ("reporter must be a Reporter, e.g. History", lambda: fit(MODEL, CORPUS, reporter=History, mesh=MESH)),
    (
        "ids must be an array .* of integers, e.g. corpus.train, not list",
        lambda: fit(MODEL, LISTS, SMALL, mesh=MESH),
    ),
    (r"ids must be \[B, N\] integers, not str; vocab.encode", lambda: score(MODEL, PARAMS, "a flat white")),
    (r"ids must be \[N\] integers, not Corpus", lambda: evaluate(MODEL, PARAMS, CORPUS)),
    (r"ids must be in \[0, 25\), but the values range from 77", lambda: evaluate(MODEL, PARAMS, np.full(9, 77))),
    ("params has layer_1.* this model does not need", lambda: evaluate(SHALLOW, PARAMS, IDS)),
    ("params has layer_1.*, which this model does", lambda: make_eval_step(SHALLOW, seq_len=8)(PARAMS, STREAMS)),
    ("pass variables", lambda: evaluate(MODEL, {"params": PARAMS}, IDS)),
    ("vocab must be a Vocab, not Corpus; .* corpus.vocab", lambda: generate_text(MODEL, PARAMS, CORPUS)),
    ("vocab must be a Vocab, not dict", lambda: generate_text(MODEL, VOCAB, PARAMS)),
    ("text must be a str, not bytes", lambda: Vocab.from_text(b"bytes")),
    ("text must be a str, not int", lambda: VOCAB.encode(5)),
    (
        "text must be a str, not PosixPath; to read a file, use Corpus.from_file",
        lambda: Corpus.from_text(Path("text.txt")),
    ),
    ("path must be a path, not int", lambda: Corpus.from_file(123)),
    ("run_dir must be a path, not Corpus", lambda: load_model(CORPUS)),
    (
        "abstract must have a sharding for each array; make one with",
        lambda: restore_checkpoint("runs/none", STATE.replace(step=jax.ShapeDtypeStruct((), np.int32))),
    ),
    ("vocab_size must be a whole number of at least 1, not Vocab", lambda: CharLSTM(VOCAB)),
    ("hidden_layers must be a whole number from 1 to 1000, not 0", lambda: CharLSTM(5, hidden_layers=0)),
    ("stop must be a str, not list; pass a single string", lambda: write(stop=["x"])),
    ("the stop string cannot be used: it is empty", lambda: write(stop="")),
    ("the stop string cannot be used: the chars vocabulary does not contain 'é'", lambda: write(stop="é")),
    ("context must be a str, not NoneType; pass a string, or a list", lambda: write(None)),
    ("context must be a str, not int", lambda: write(["a", 5])),
    ("context must be a str, not int; ", lambda: write(5)),
    ("context must be a str, not generator", lambda: write(text for text in "ab")),
    ("length must be a whole number of at least 0, not '5'", lambda: write(length="5")),
    ("top_k must be a whole number of at least 1, not '3'", lambda: write(top_k="3")),
    ("temperature must be at least 0 and finite, not None", lambda: write(temperature=[None])),
    ("temperature must be at least 0 and finite, not 'hot'", lambda: write(temperature=["hot"])),
    ("temperature must not be an empty list", lambda: write(temperature=[])),
    ("num_samples must be a whole number of at least 1, not True", lambda: write(num_samples=True)),
    (r"seed must be a whole number from 0 to 4294967295, not \[\[1\]\]", lambda: write(seed=[[1]])),
    (
        "context_lengths must be 1 integers",
        lambda: generate(MODEL, PARAMS, IDS[None], key=KEY, length=3, context_lengths=["a"]),
    ),
    ("config must be a SampleConfig, not dict", lambda: Session(MODEL, PARAMS, VOCAB, {"temperature": 1})),
    ("length must be a whole number of at least 0, not '5'", lambda: next(session().write("5"))),
    (
        r"units must be a list of \(layer, unit\) pairs, .* not \[3\]",
        lambda: unit_activations(MODEL, PARAMS, IDS[None], [3]),
    ),
    ("pieces must be a list or iterator of ids .* not Corpus", lambda: list(score_pieces(MODEL, PARAMS, CORPUS))),
    ("separator must be .m. integers, not str", lambda: list(score_pieces(MODEL, PARAMS, [IDS], separator="\n"))),
    ("devices must be distinct devices", lambda: make_mesh(jax.devices()[:1] * 2)),
    ("batch_size must be a whole number of at least 1, not 0", lambda: make_streams(IDS, batch_size=0, seq_len=2)),
    ("a layer's weights must be LSTMWeights, .* not dict", lambda: ops.lstm(CELL, IDS[None], CARRY[0])),
    (
        "weights must be a list of LSTMWeights, .* not LSTMWeights",
        lambda: lstm_stack(LSTMWeights(**CELL), IDS[None], CARRY),
    ),
    ("LSTM input must be an array, not list", lambda: MODEL.apply({"params": PARAMS}, [[1, 2]], CARRY)),
]
SHALLOW = MODEL.clone(hidden_layers=1)
LISTS = dataclasses.replace(CORPUS, train=CORPUS.train.tolist())
CELL, CARRY = PARAMS["layer_0"]["cell"], init_carry(MODEL, 1)


def write(context="a", **options):
    return generate_text(MODEL, PARAMS, VOCAB, context, **options)


def session():
    return Session(MODEL, PARAMS, VOCAB, SampleConfig())


@pytest.mark.parametrize(("message", "mistake"), MISTAKES)
def test_likely_mistakes_are_named(message, mistake):
    refuses(message, mistake)


@pytest.mark.parametrize("name", ["fit", "save_checkpoint", "restore_checkpoint"])
def test_a_run_folder_whose_path_is_not_utf8_is_refused(name, tmp_path):
    """Orbax cannot pass it on to C++."""
    where = "out" if name == "fit" else "run_dir"
    message = r"/run: checkpoints need a path that is valid UTF-8; choose another --out"
    refuses(message, call, name, TAKEN[name] | {where: tmp_path / "re\udcff" / "run"})
    assert not list(tmp_path.iterdir())


WITH_VOCAB = [name for name, taken in TAKEN.items() if {"model", "vocab"} <= set(taken)]


@pytest.mark.parametrize("vocab", [Vocab.ascii(), Vocab.from_text("a fltwhie")], ids=["larger", "smaller"])
@pytest.mark.parametrize("name", [*WITH_VOCAB, "Session"])
def test_another_models_vocabulary_is_refused(name, vocab):
    message = rf"the vocabulary has {vocab.size} characters, but the model's vocab_size is {VOCAB.size}; use"
    if name == "Session":
        refuses(message, Session, MODEL, PARAMS, vocab, SampleConfig())
    else:
        refuses(message, call, name, TAKEN[name] | {"vocab": vocab})


MESHES = {
    "axis x": jax.make_mesh((1,), ("x",), devices=jax.devices()[:1]),
    "two axes": jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1]),
    "devices": jax.devices()[:1],
}
WITH_MESH = {name: taken for name, taken in TAKEN.items() if "mesh" in taken}


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", [*WITH_MESH, "abstract_train_state"])
def test_other_meshes_are_refused(name, mesh):
    function = abstract_train_state if name == "abstract_train_state" else getattr(charjax, name)
    taken = WITH_MESH.get(name, {"model": MODEL, "optimizer": OPTIMIZER, "batch_size": 2})
    refuses(
        "^mesh must (be a Mesh|have one axis), .*; make one with charjax.make_mesh$", function, **taken | {"mesh": mesh}
    )


@pytest.fixture(scope="module")
def state():
    return init_train_state(KEY, MODEL, OPTIMIZER, batch_size=2, mesh=MESH)


CARRIES = {
    "None": None,
    "a number": 5,
    "a list": list(init_carry(MODEL, 2)),
    "deeper": init_carry(MODEL.clone(hidden_layers=3), 2),
    "plain tuples": tuple(map(tuple, init_carry(MODEL, 2))),
    "of another batch": init_carry(MODEL, 4),
    "of another width": init_carry(MODEL.clone(hidden_dim=5), 2),
}


@pytest.mark.parametrize("name", CARRIES)
def test_a_step_names_a_wrong_carry(name, state):
    step = make_train_step(MODEL, OPTIMIZER, seq_len=8, mesh=MESH)
    refuses("carry", step, state.replace(carry=CARRIES[name]), put_streams(STREAMS, MESH))


@pytest.mark.parametrize("name", sorted(set(CARRIES) - {"None"}))  # an empty one by default
def test_an_evaluation_names_a_wrong_carry(name):
    refuses("carry", make_eval_step(MODEL, seq_len=8, mesh=MESH), PARAMS, put_streams(STREAMS, MESH), CARRIES[name])


@pytest.mark.parametrize("name", sorted(set(CARRIES) - {"a list"}))
def test_the_model_names_a_wrong_carry(name):
    refuses("carry", MODEL.apply, {"params": PARAMS}, STREAMS.ids[:, :5], CARRIES[name])


def test_a_step_names_what_it_is_not_given(state):
    step, streams = make_train_step(MODEL, OPTIMIZER, seq_len=8, mesh=MESH), put_streams(STREAMS, MESH)
    refuses("state must be a TrainState, not Streams", step, streams, state)
    refuses("streams must be a Streams, not ndarray; make them with make_streams", step, state, STREAMS.ids)
    refuses("num_steps must be a whole number of at least 0, not '5'", step, state, streams, "5")
    parts = make_train_step(MODEL, OPTIMIZER, seq_len=8, mesh=MESH, microbatches=3)
    refuses("batch_size 2 cannot be split evenly over 3 microbatches", parts, state, streams)
    refuses("streams must be a Streams", make_eval_step(MODEL, seq_len=8, mesh=MESH), PARAMS, STREAMS.ids)
