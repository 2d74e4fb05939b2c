"""Files in a run folder from someone else: nothing in them is executed, followed or believed."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
from helpers.small_run import SMALL, save_run, small_corpus, small_model
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from charjax import fit, load_model
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.host.atomic_file import replacing
from charjax.interop import from_torch
from charjax.runs.compatibility import describe_run
from charjax.runs.integrity import DIGESTS, DamagedError, check_digests, write_digests
from charjax.runs.logs import AppendLog, read_metrics
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.safe_files import read_json

CORPUS = small_corpus()
MODEL = small_model(CORPUS)


def test_nothing_is_unpickled_or_evaluated(tmp_path, monkeypatch):
    def forbidden(*args, **options):
        raise AssertionError("a model made Python execute something")

    def watched(name, *args, importing=__import__, **options):
        known = name.split(".")[0] in {module.split(".")[0] for module in sys.modules}
        return importing(name, *args, **options) if known else forbidden()

    save_run(tmp_path, CORPUS, MODEL)
    load_model(tmp_path)  # imports execute code: only what follows comes from the files
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr("builtins.eval", forbidden)
    monkeypatch.setattr("builtins.__import__", watched)
    monkeypatch.setattr(np, "load", forbidden)
    load_model(tmp_path)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_training_writes_through_no_link_and_to_no_pipe(run, tmp_path, name, kind):
    outside = tmp_path / "precious"
    outside.write_text("precious")
    (run / name).unlink(missing_ok=True)
    if kind == "link":
        (run / name).symlink_to(outside)
    else:
        os.mkfifo(run / name)
    message = "is a symbolic link" if kind == "link" else "is not a regular file|cannot be written"
    with pytest.raises(UserError, match=f"{name} ({message})"):
        fit(MODEL, CORPUS, SMALL, out=run, epochs=1, resume=True)
    assert outside.read_text() == "precious"


@pytest.mark.parametrize("name", ["config.json", ".vocab.json.{pid}.new", "model.safetensors"])
def test_links_in_the_place_of_model_files_are_replaced(run, tmp_path, name):
    name = name.format(pid=os.getpid())
    outside = tmp_path / "precious"
    outside.write_text("precious")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    fit(MODEL, CORPUS, SMALL, out=run, epochs=1, resume=True)
    assert outside.read_text() == "precious"
    assert not (run / name).is_symlink()
    load_model(run)


def test_a_file_is_replaced_with_its_permissions_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640

    def fail():
        with replacing(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        fail()
    assert caught.value.filename == str(path)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 50_000, "maximum recursion depth"),
        (b" " * 200_000, "is not an evaluation"),
        (b'{"step": 1, "epoch": 1' + b"0" * 400 + b"}", "epoch is 1000000000.*, which is too large|is missing"),
        (b'{"step": "' + b"x" * 10_000 + b'"}', "step is 'xxxx.*not a whole number"),
    ],
)
def test_lines_of_metrics_that_charjax_did_not_write(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        read_metrics(path)
    assert len(str(caught.value)) < 1000


def test_metrics_from_a_pipe_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="is not a regular file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_small_file_is_read_with_a_small_buffer(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text("{}")
    tracemalloc.start()
    assert read_json(path) == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18
    os.truncate(path, 2**25)
    with pytest.raises(UserError, match="is larger than 16,777,216 bytes"):
        read_json(path)


def test_logs_are_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.runs.logs._LONGEST_LINE", 2**24)
    path = tmp_path / "samples.txt"
    path.write_bytes(b"first\n")
    os.truncate(path, 3 * 2**20)  # zeros, without a line break
    tracemalloc.start()
    with AppendLog(path) as log:
        assert log.size == len(b"first\n")
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="has no line breaks"):
        AppendLog(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


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
def test_a_config_with_any_value_in_any_place_is_a_value_or_a_clear_error(data):
    info = describe_run(MODEL, CORPUS, SMALL).to_dict()
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


@given(
    st.dictionaries(
        st.sampled_from([f"lstm.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")])
        | st.sampled_from(["head.weight", "head.bias", "lstm.weight_ih_l1", "lstm.weight_ih_l9999999999"]),
        arrays(st.sampled_from(["f4", "f8", "f2", "i4", "c8", "O", "S3"]), array_shapes(min_dims=0, max_side=4)) | JSON,
        max_size=9,
    )
)
def test_any_state_dict_is_taken_or_refused(state_dict):
    with contextlib.suppress(UserError):
        from_torch(state_dict)


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
def test_mutated_digests_match_or_are_damaged(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "digests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "file").write_text("content")
    write_digests(folder)
    (folder / DIGESTS).write_bytes(mutated((folder / DIGESTS).read_bytes(), data))
    with contextlib.suppress(DamagedError):
        check_digests(folder)


@given(st.data())
def test_mutated_metrics_are_numbers_or_a_clear_error(tmp_path_factory, data):
    numbers = b'"train_loss": 3.5, "val_loss": 2.9, "chars_per_second": null, "elapsed_seconds": 1.0'
    line = b'{"step": 12, "epoch": 0.5, ' + numbers + b"}\n"
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(mutated(3 * line, data))
    with contextlib.suppress(UserError):
        read_metrics(path)
