"""Run folders from someone else: nothing in them is executed, followed or believed."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import SMALL, save_run, small_corpus, small_model

from charjax import fit, load_model
from charjax.checkpoint import read_header, restore_checkpoint
from charjax.errors import UserError
from charjax.optimizer import make_optimizer
from charjax.report.metrics import read_metrics
from charjax.run_info import Progress, RunInfo
from charjax.safe_files import LARGEST_JSON
from charjax.seal import SEAL, BrokenSealError, check_seal, seal
from charjax.sharding import make_mesh
from charjax.train_state import abstract_train_state
from charjax.vocab import Vocab

CORPUS = small_corpus()
MODEL = small_model(CORPUS)
METADATA = "_CHECKPOINT_METADATA"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("original") / "run", CORPUS, MODEL)


@pytest.fixture
def run(original, tmp_path):
    """A copy of a run, to be changed."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def abstract():
    mesh = make_mesh(jax.devices()[:1])
    return abstract_train_state(MODEL, make_optimizer(SMALL, 9), batch_size=1, mesh=mesh)


def checkpoint(run):
    return run / "checkpoints" / "1"


def change(run, *places, to):
    """Changes what a checkpoint says of itself, and seals it again, as anyone can."""
    path = checkpoint(run) / METADATA
    content = json.loads(path.read_text())
    values = content["custom_metadata"]
    for place in places[:-1]:
        values = values[place]
    values[places[-1]] = to
    path.write_text(json.dumps(content))
    seal(checkpoint(run))


def test_nothing_is_unpickled_or_evaluated(run, monkeypatch):
    def forbidden(*args, **options):
        raise AssertionError("a run folder made Python execute something")

    load_model(run)  # what is imported late executes itself; only what comes after is of the files
    restore_checkpoint(run, abstract())
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr("builtins.eval", forbidden)
    monkeypatch.setattr("builtins.__import__", watched_import(forbidden))
    monkeypatch.setattr(np, "load", forbidden)
    load_model(run)
    restore_checkpoint(run, abstract())


def watched_import(forbidden):
    """Import of what is not there yet, which a name in a file could ask for, is forbidden."""
    importing = __import__

    def watched(name, *args, **options):
        return (
            importing(name, *args, **options)
            if name.split(".")[0] in {m.split(".")[0] for m in sys.modules}
            else forbidden()
        )

    return watched


@pytest.mark.parametrize("name", ["../../../outside", "/etc/hostname", "params/../../../x", "a\0b"])
def test_a_seal_that_names_files_elsewhere_is_broken(run, name):
    (checkpoint(run) / SEAL).write_text(json.dumps({name: "0" * 64}))
    with pytest.raises(BrokenSealError, match="names files elsewhere"):
        check_seal(checkpoint(run))
    with pytest.raises(UserError, match="cannot be read"):
        load_model(run)


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"[]", b"null", b'{"a": 1}', b'{"a": ["b"]}', b"\xff", b"{", b" " * (LARGEST_JSON + 1)]
)
def test_a_seal_of_another_kind_is_damaged(run, content):
    (checkpoint(run) / SEAL).write_bytes(content)
    with pytest.raises(BrokenSealError, match="is damaged"):
        check_seal(checkpoint(run))


@pytest.mark.parametrize("what", ["a file", "a folder", "the checkpoint", "all checkpoints"])
def test_links_are_not_followed(run, tmp_path, what):
    places = {
        "a file": checkpoint(run) / METADATA,
        "a folder": checkpoint(run) / "params",
        "the checkpoint": checkpoint(run),
        "all checkpoints": checkpoint(run).parent,
    }
    place = places[what]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        load_model(run)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run):
    path = checkpoint(run) / METADATA
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        load_model(run)


@pytest.mark.parametrize("name", [".lock", "config.json.new", "metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_training_writes_through_no_link_and_to_no_pipe(tmp_path, name, kind):
    run, outside = tmp_path / "run", tmp_path / "precious"
    fit(MODEL, CORPUS, SMALL, out=run, epochs=1, sample_length=0, eval_every=None)
    outside.write_text("precious")
    (run / name).unlink(missing_ok=True)
    if kind == "link":
        (run / name).symlink_to(outside)
    else:
        os.mkfifo(run / name)
    with pytest.raises(
        UserError, match=f"{name} is a symbolic link" if kind == "link" else f"{name} is no file|{name} cannot"
    ):
        fit(MODEL, CORPUS, SMALL, out=run, epochs=2, sample_length=0, eval_every=None, resume=True)
    assert outside.read_text() == "precious"


@pytest.mark.parametrize(
    ("places", "value", "message"),
    [
        (("info", "model", "hidden_dim"), 10**7, r"the model needs about 4,800\.0 TB of memory"),
        pytest.param(
            ("info", "model", "hidden_dim"), 10**300, "hidden_dim must be at most 2147483647", id="hidden_dim-huge"
        ),
        (("info", "model", "hidden_layers"), 10**9, "hidden_layers must be a whole number from 1 to 1000"),
        (("info", "model", "hidden_dim"), 13, r"head/kernel is float32\[12, 128\], not float32\[13, 128\]"),
        (("info", "model", "hidden_layers"), 3, "layer_2/cell/bias is missing"),
        (("info", "model", "hidden_layers"), 1, r"layer_1/cell/bias is float32\[48\], not missing"),
        (("info", "vocab"), {"kind": "chars", "characters": "abc"}, r"head/bias is float32\[128\], not float32\[3\]"),
        (("info", "vocab"), {"kind": "chars", "characters": "ba"}, "must be distinct and in the order"),
        (("info", "vocab", "kind"), "__import__('os')", "the vocabulary must be"),
        (("info", "model", "dtype"), "float8", "dtype must be"),
        (("info", "model", "dropout"), float("nan"), "dropout must be"),
        (("progress", "step"), 2, "says that it is of step 2"),
        (("progress", "step"), -1, "Progress.step must be a number from 0"),
        (("progress", "elapsed_seconds"), float("inf"), "Progress.elapsed_seconds must be a number"),
        (("progress", "best_val_loss"), float("nan"), "Progress.best_val_loss must be a number"),
        pytest.param(
            ("progress", "metrics_bytes"), 10**400, "Progress.metrics_bytes must be a number", id="metrics_bytes-huge"
        ),
        (("progress",), None, "Progress must hold"),
        (("info",), [], "RunInfo must hold"),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_checked(run, places, value, message):
    change(run, *places, to=value)
    with pytest.raises(UserError, match=message):
        load_model(run)


def test_a_model_kept_with_other_arrays_than_it_has_is_not_loaded(tmp_path):
    """Orbax alone would load what is stored, of any size."""

    def grown(params):
        params = jax.tree.map(np.asarray, params)
        return {**params, "head": {**params["head"], "kernel": np.zeros((300, 500), np.float32)}}

    save_run(tmp_path / "run", CORPUS, MODEL, params=grown)
    with pytest.raises(UserError, match=r"params/head/kernel is float32\[300, 500\], not float32\[12, 128\]"):
        load_model(tmp_path / "run")
    with pytest.raises(UserError, match=r"params/head/kernel is float32\[300, 500\], not float32\[12, 128\]"):
        restore_checkpoint(tmp_path / "run", abstract())


def test_a_state_that_lacks_a_part_is_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.checkpoint._parts", lambda state: {
        "params": state.params, "training": {"step": state.step}
    })  # fmt: skip
    save_run(tmp_path / "run", CORPUS, MODEL)
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"checkpoint 1 of .* was written by another version of charjax \(training/.* is missing"
    ):
        restore_checkpoint(tmp_path / "run", abstract())
    load_model(tmp_path / "run")


def test_names_from_a_run_cannot_command_the_terminal(run, capsys):
    change(run, "info", "corpus", "path", to="/tmp/\x1b]0;owned\x07.txt")
    assert "\x1b" not in fails(capsys, "eval", run)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_value_or_a_clear_error(values):
    for kind in (RunInfo, Progress, Vocab):
        with contextlib.suppress(UserError):
            kind.from_dict(values)


@settings(max_examples=100)
@given(st.data())
def test_a_config_with_any_value_in_any_place_is_a_value_or_a_clear_error(original, data):
    info = read_header(original).info.to_dict()
    part = data.draw(st.sampled_from(sorted(info)))
    value = data.draw(JSON)
    if isinstance(info[part], dict) and data.draw(st.booleans()):
        info[part] = {**info[part], data.draw(st.sampled_from(sorted(info[part]))): value}
    else:
        info[part] = value
    try:
        again = RunInfo.from_dict(info)
    except UserError:
        return
    assert RunInfo.from_dict(json.loads(json.dumps(again.to_dict()))) == again


def mutated(content, data):
    """Bytes with a few flips, cuts and insertions."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
        if action == "flip" and place < len(content):
            content[place] ^= data.draw(st.integers(1, 255))
        elif action == "cut":
            del content[place:]
        elif action == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del content[place : place + data.draw(st.integers(1, 8))]
    return bytes(content)


@given(st.data())
def test_a_mutated_seal_is_whole_or_broken(original, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "sealed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "file").write_text("content")
    seal(folder)
    (folder / SEAL).write_bytes(mutated((folder / SEAL).read_bytes(), data))
    with contextlib.suppress(BrokenSealError):
        check_seal(folder)


@given(st.data())
def test_mutated_metrics_are_numbers_or_a_clear_error(tmp_path_factory, data):
    numbers = b'"train_loss": 3.5, "val_loss": 2.9, "chars_per_second": null, "elapsed_seconds": 1.0'
    line = b'{"step": 12, "epoch": 0.5, ' + numbers + b"}\n"
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(mutated(3 * line, data))
    with contextlib.suppress(UserError):
        read_metrics(path)


# Every file of a checkpoint but the seal, mutated and sealed again: in a process of its own, which a crash would end.
FUZZ = """
import random, resource, shutil, sys
from pathlib import Path
import charjax
from charjax.checkpoint import load_params, read_header
from charjax.errors import UserError
from charjax.seal import SEAL, seal
original, work, seeds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
load_params(original)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcomes = {"loaded": 0, "refused": 0}
for seed in range(seeds):
    random.seed(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(original, work)
    folder = work / "checkpoints" / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL and path.stat().st_size)
    path = files[seed % len(files)]
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(content))
        action = random.choice(["flip", "cut", "digits", "insert"])
        if action == "flip":
            content[place] ^= random.randint(1, 255)
        elif action == "cut":
            del content[max(1, place):]
        elif action == "insert":
            content[place:place] = bytes(random.randrange(256) for _ in range(random.randint(1, 8)))
        else:
            digits = [at for at, byte in enumerate(content) if 48 <= byte < 58] or [place]
            content[random.choice(digits):][:1] = b"9" * 12
            at = random.choice(digits)
            content[at:at + 1] = b"9" * random.randint(1, 12)
    path.write_bytes(bytes(content))
    seal(folder)
    print(seed, path.relative_to(folder), flush=True)
    try:
        read_header(work)
        load_params(work)
        outcomes["loaded"] += 1
    except (UserError, OSError) as error:
        outcomes["refused"] += 1
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(outcomes["loaded"], outcomes["refused"], grown)
"""


def test_mutated_files_sealed_again_are_loaded_or_refused_in_little_memory(original, tmp_path):
    command = [sys.executable, "-c", FUZZ, str(original), str(tmp_path / "run"), "150"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-2000:])
    loaded, refused, grown_kb = map(int, done.stdout.splitlines()[-1].split())
    assert loaded + refused == 150
    assert refused > 20
    assert grown_kb < 300_000
