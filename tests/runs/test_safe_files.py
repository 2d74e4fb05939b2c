"""Run folders from someone else: nothing in them is executed, followed or believed."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.command_line import fails
from helpers.small_run import SMALL, save_run, small_corpus, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from charjax import fit, generate_text, load_model
from charjax.cli import main as cli
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import make_mesh
from charjax.errors import UserError
from charjax.interop import from_torch
from charjax.runs.checkpoint import read_header, restore_checkpoint
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.integrity import SEAL, BrokenSealError, check_seal, seal
from charjax.runs.logs import AppendLog, read_metrics
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.safe_files import LARGEST_JSON
from charjax.runs.unfinished import is_leftover
from charjax.train_state import abstract_train_state
from charjax.training.optimizer import make_optimizer

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
    change_json(run, METADATA, "custom_metadata", *places, to=to)


def change_json(run, name, *places, to):
    """Changes a value in a file of JSON, and seals the checkpoint again."""
    path = checkpoint(run) / name
    content = json.loads(path.read_text())
    values = content
    for place in places[:-1]:
        values = values[place]
    values[places[-1]] = to
    path.write_text(json.dumps(content))
    seal(checkpoint(run))


def refused(run, message):
    """Checks that a run is refused, in one line, whether it is to be used or gone on with."""
    for load in (load_model, lambda run: restore_checkpoint(run, abstract())):
        with pytest.raises(UserError, match=message) as caught:
            load(run)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


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


@pytest.mark.parametrize("name", [
    "../../../outside", "/etc/hostname", "params/../../../x", "a\0b", "", "\ud800", "a\nb", "a//b", "~/.x", "C:\\x",
])  # fmt: skip
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
        (("info", "model", "hidden_dim"), 10**7, r"the model needs about 4\.8 PB of memory"),
        pytest.param(
            ("info", "model", "hidden_dim"), 10**300, "hidden_dim must be at most 1000000000000", id="hidden_dim-huge"
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


HUGE = 10**9
ARRAY = "params/head.kernel/zarr.json"


@pytest.mark.parametrize(
    ("name", "places", "value", "message"),
    [
        (ARRAY, ("shape",), [HUGE, HUGE], r"head/kernel is float32\[1000000000, 1000000000\], not float32\[12, 128"),
        (ARRAY, ("shape",), [12, 128, 1], "is not of an array that charjax stores"),
        (ARRAY, ("shape",), [12, -128], "is not of an array that charjax stores"),
        (ARRAY, ("shape",), [12, 128.0], "is not of an array that charjax stores"),
        pytest.param(ARRAY, ("shape",), [10**400, 128], "is not of an array that charjax stores", id="shape-10**400"),
        (ARRAY, ("shape",), "ab", "is not of an array that charjax stores"),
        (ARRAY, ("data_type",), "float64", r"params/head/kernel is float64\[12, 128\], not float32"),
        (ARRAY, ("data_type",), {"name": "r999999999"}, "is not of an array that charjax stores"),
        (ARRAY, ("chunk_grid", "configuration", "chunk_shape"), [HUGE, HUGE], "is not of an array that charjax stores"),
        (ARRAY, ("chunk_grid", "name"), "other", "is not of an array that charjax stores"),
        (ARRAY, ("chunk_grid",), None, "does not hold what charjax writes"),
        (ARRAY, ("codecs", 0, "name"), "blosc", "is not of an array that charjax stores"),
        (ARRAY, ("codecs", 0, "configuration", "chunk_shape"), [1, 1], "is not of an array that charjax stores"),
        (ARRAY, ("codecs", 0, "configuration", "codecs", 0, "name"), "gzip", "is not of an array that charjax stores"),
        (ARRAY, ("codecs", 0, "configuration", "index_codecs"), {}, "is not of an array that charjax stores"),
        (ARRAY, ("codecs",), [[]], "is not of an array that charjax stores"),
        ("params/_METADATA", ("use_ocdbt",), True, "is not stored as charjax stores arrays"),
        ("params/_METADATA", ("use_zarr3",), False, "is not stored as charjax stores arrays"),
        ("params/_METADATA", ("tree_metadata",), {}, "params/head/bias is missing"),
        ("params/_METADATA", ("tree_metadata",), [], "does not hold what charjax writes"),
        ("params/_METADATA", ("tree_metadata", "('..', '..')"), {
            "key_metadata": [{"key": ".."}, {"key": ".."}], "value_metadata": {"value_type": "jax.Array"},
        }, "names .*, which charjax does not store"),
        ("params/_METADATA", ("tree_metadata", "('head', 'kernel')", "key_metadata", 0, "key"), "/etc", "names"),
        ("params/_METADATA", ("tree_metadata", "('head', 'kernel')", "value_metadata", "value_type"), "str", "names"),
        ("params/_METADATA", ("tree_metadata", "('head', 'kernel')", "value_metadata"), None, "does not hold"),
        (METADATA, ("item_handlers", "params"), "os.system", "holds something else than arrays"),
        (METADATA, ("item_handlers",), None, "was written by another version of charjax"),
        (METADATA, ("custom_metadata",), None, "was written by another version of charjax"),
    ],
)  # fmt: skip
def test_what_orbax_would_read_is_checked(run, name, places, value, message):
    change_json(run, name, *places, to=value)
    with pytest.raises(UserError, match=message) as caught:
        load_model(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [METADATA, "params/_METADATA", "params/array_metadatas/process_0", ARRAY])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"\xff", b"1" * 5000, b" " * (LARGEST_JSON + 1)])
def test_json_of_any_depth_and_size_is_refused(run, name, content):
    (checkpoint(run) / name).write_bytes(content)
    seal(checkpoint(run))
    refused(run, "is no JSON|is larger than|was written by another version|takes .* bytes")


def test_the_index_that_orbax_would_pack_is_not_read(run):
    """TensorStore takes gigabytes for 90 kB of it."""
    (checkpoint(run) / "params" / "manifest.ocdbt").write_bytes(b"\x0c\xdb:*" + bytes(100))
    seal(checkpoint(run))
    load_model(run)


def test_arrays_of_a_terabyte_of_nothing_are_not_read(run):
    victim = checkpoint(run) / "params" / "head.kernel" / "c" / "0" / "0"
    os.truncate(victim, 2**40)
    refused(run, r"takes 1,099,\d+,\d+,\d+ bytes, more than its model and training state")


def test_folders_without_end_are_given_up(run, monkeypatch):
    (checkpoint(run) / "/".join(["deeper"] * 40)).mkdir(parents=True)
    refused(run, "more files and folders than a checkpoint has")
    shutil.rmtree(checkpoint(run) / "deeper")
    load_model(run)
    monkeypatch.setattr("charjax.runs.integrity.MOST_ENTRIES", 20)
    refused(run, "more files and folders than a checkpoint has")


def test_where_the_system_does_not_tell_of_memory_arrays_are_checked_first(run, monkeypatch):
    monkeypatch.setattr("charjax.host.memory.available_memory", lambda devices: None)
    change(run, "info", "model", "hidden_dim", to=10**8)
    with pytest.raises(
        UserError, match=r"params/head/bias|params/head/kernel is float32\[12, 128\], not float32\[1000000"
    ):
        load_model(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_numbers_that_are_not_finite_give_some_text(tmp_path, value, weights):
    save_run(
        tmp_path / "run",
        CORPUS,
        MODEL,
        params=lambda params: jax.tree.map(lambda leaf: np.full_like(leaf, value), params),
    )
    model, params, vocab = load_model(tmp_path / "run")
    for temperature in (0.0, 1.0):
        (text,) = generate_text(model, params, vocab, "a", length=40, temperature=temperature, weights=weights)
        assert len(text) == 40
        assert not vocab.unknown(text)


@pytest.mark.parametrize("content", [None, b"[" * 100_000, b" " * (LARGEST_JSON + 1)])
def test_a_pipe_or_endless_json_is_no_configuration(tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / "config.json")
    else:
        (tmp_path / "config.json").write_bytes(content)
    assert not is_leftover(tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "config.json"])
def test_a_run_is_not_started_over_through_links(run, tmp_path, name):
    config = run / "config.json"
    config.write_text(json.dumps(read_header(run).info.to_dict()))
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    assert is_leftover(run)
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="exists already"):
        fit(MODEL, CORPUS, SMALL, out=run, epochs=1, sample_length=0)
    assert (tmp_path / "elsewhere").exists()


def test_what_links_lead_to_is_not_removed(run, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("precious")
    for name in ("7.removed", "7.orbax-checkpoint-tmp", "9.set-aside"):
        (run / "checkpoints" / name).symlink_to(outside)
    (run / "checkpoints" / "8").mkdir()
    (run / "checkpoints" / "9").mkdir()
    (run / "checkpoints" / "9" / SEAL).touch()
    with CheckpointStore(run, read_header(run, quiet=True).info, step=1):
        pass
    assert (outside / "file").read_text() == "precious"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1", "9.set-aside"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 50_000, "maximum recursion depth"),
        (b" " * 200_000, "is not an evaluation"),
        (b'{"step": 1, "epoch": 1' + b"0" * 400 + b"}", "epoch is 1000000000.*, which is too large|is missing"),
        (b'{"step": "' + b"x" * 10_000 + b'"}', "step is 'xxxx.*not a whole number"),
    ],
)
def test_lines_of_metrics_that_nobody_wrote(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        read_metrics(path)
    assert len(str(caught.value)) < 1000


def test_metrics_from_a_pipe_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="is no file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_logs_are_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.runs.logs._LONGEST_LINE", 2**24)
    path = tmp_path / "samples.txt"
    path.write_bytes(b"first\n")
    os.truncate(path, 3 * 2**20)  # zeros, with no end of a line
    tracemalloc.start()
    with AppendLog(path) as log:
        assert log.size == len(b"first\n")
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="is not of lines"):
        AppendLog(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_half_characters_in_a_vocabulary_are_written_as_escapes(run):
    """A vocabulary from someone else may have any character, also those that no text has."""
    characters = "".join(map(chr, range(0xD800, 0xD800 + 128)))
    change(run, "info", "vocab", to={"kind": "chars", "characters": characters})
    done = subprocess.run(
        [sys.executable, "-m", "charjax", "sample", str(run), "--length", "20"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"\\ud8" in done.stdout


def test_info_shows_names_without_obeying_them(run, capsys):
    change(run, "info", "corpus", "name", to="\x1b]0;owned\x07\nbest  0.0001 nats/char")
    assert cli.main(["info", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert not any(line.startswith("best  0.0001") for line in shown.splitlines())


def test_a_model_kept_with_other_arrays_than_it_has_is_not_loaded(tmp_path):
    """Orbax alone would load what is stored, of any size."""

    def grown(params):
        params = jax.tree.map(np.asarray, params)
        return {**params, "head": {**params["head"], "kernel": np.zeros((300, 500), np.float32)}}

    save_run(tmp_path / "run", CORPUS, MODEL, params=grown)
    what = r"\(params/head/kernel is float32\[300, 500\], not float32\[12, 128\]\)"
    refused(tmp_path / "run", f"checkpoint 1 of .*/run does not match its configuration {what}")


def test_a_state_that_lacks_a_part_is_of_another_version(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.runs.checkpoint._parts", lambda state: {
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


def places_in(values):
    """Every place in a JSON value, as the keys that lead to it."""
    found = [()]
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            found += [(key, *rest) for rest in places_in(value)]
    return found


DESCRIPTIONS = (METADATA, "params/_METADATA", "params/array_metadatas/process_0", ARRAY)
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**18, 10**400, 0.5, float("nan"), float("inf"), 1e308])


@pytest.mark.parametrize("name", DESCRIPTIONS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_place_of_a_description_is_loaded_or_refused(original, tmp_path_factory, name, data):
    work = tmp_path_factory.getbasetemp() / "described"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(original, work)
    content = json.loads((checkpoint(work) / name).read_text())
    places = data.draw(st.sampled_from([place for place in places_in(content) if place]))
    change_json(work, name, *places, to=data.draw(JSON | NUMBERS))
    message = ""
    try:
        load_model(work)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 2000


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
import jax
from helpers.small_run import SMALL, small_corpus, small_model
from charjax.distributed.mesh import make_mesh
from charjax.train_state import abstract_train_state
from charjax.training.optimizer import make_optimizer
from charjax.runs.checkpoint import load_params, restore_checkpoint
from charjax.errors import UserError
from charjax.interop import from_torch
from charjax.runs.integrity import SEAL, seal
original, work, seeds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
MODEL = small_model(small_corpus())
state = abstract_train_state(MODEL, make_optimizer(SMALL, 9), batch_size=1, mesh=make_mesh(jax.devices()[:1]))
load_params(original)
restore_checkpoint(original, state)
# What asks for more than a gigabyte fails, and would end the process in C++.
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, resource.RLIM_INFINITY))
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
        load_params(work)
        restore_checkpoint(work, state)
        outcomes["loaded"] += 1
    except (UserError, OSError) as error:
        outcomes["refused"] += 1
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(outcomes["loaded"], outcomes["refused"], grown)
"""


def test_mutated_files_sealed_again_are_loaded_or_refused_in_little_memory(original, tmp_path):
    command = [sys.executable, "-c", FUZZ, str(original), str(tmp_path / "run"), "150"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-2000:])
    loaded, refused, grown_kb = map(int, done.stdout.splitlines()[-1].split())
    assert loaded + refused == 150
    assert refused > 20
    assert grown_kb < 300_000
