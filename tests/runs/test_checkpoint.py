"""Checkpoints: restored bit for bit, damage noticed, mismatches named in one line."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from helpers.small_run import SMALL, assert_same, small_corpus, small_model

from charjax import load_model, restore_checkpoint, save_checkpoint
from charjax.data.batching import make_streams
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.errors import UserError
from charjax.runs import checkpoint as checkpoint_module
from charjax.runs.checkpoint_header import read_header
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.compatibility import describe_run
from charjax.runs.integrity import DIGESTS, DamagedError, check_digests, write_digests
from charjax.runs.metadata import Progress
from charjax.runs.model_file import load_params
from charjax.train_state import abstract_train_state, init_train_state
from charjax.training.optimizer import make_optimizer
from charjax.training.step import make_train_step

CORPUS = small_corpus(vocab="chars")
MODEL = small_model(CORPUS)
INFO = describe_run(MODEL, CORPUS, SMALL)
OPTIMIZER = make_optimizer(SMALL, 100)
METADATA = "_CHECKPOINT_METADATA"


def mesh_of(num_devices):
    return make_mesh(jax.devices()[:num_devices])


def make_state(seed=0, num_devices=1):
    return init_train_state(jax.random.key(seed), MODEL, OPTIMIZER, batch_size=8, mesh=mesh_of(num_devices))


def abstract(num_devices=1, model=MODEL, batch_size=8):
    return abstract_train_state(model, OPTIMIZER, batch_size=batch_size, mesh=mesh_of(num_devices))


def save(path, losses):
    """Saves a state per step, with the validation loss given -> the states."""
    states, best = {}, (None, None)
    with CheckpointStore(path, INFO) as store:
        for step, loss in losses.items():
            if loss is not None and (best[1] is None or loss < best[1]):
                best = (step, loss)
            states[step] = make_state(step)
            progress = Progress(step=step, val_loss=loss, best_step=best[0], best_val_loss=best[1])
            store.save(states[step], progress)
    return states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with the checkpoints 1 and 2, of which 2 is the best, and their states."""
    run = tmp_path_factory.mktemp("saved") / "run"
    return run, save(run, {1: 3.0, 2: 2.0})


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def steps(path):
    return sorted(int(folder.name) for folder in (path / "checkpoints").glob("[0-9]*") if folder.name.isdigit())


def trained_on(num_devices):
    """A step and streams for that many devices."""
    mesh = mesh_of(num_devices)
    step = make_train_step(MODEL, OPTIMIZER, seq_len=16, mesh=mesh)
    return step, put_streams(make_streams(CORPUS.train, batch_size=8, seq_len=16), mesh)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    step, streams = trained_on(2)
    state, _ = step(make_state(num_devices=2), streams, 5)
    progress = Progress(step=5, epoch=0.25, val_loss=2.5, best_step=5, best_val_loss=2.5, elapsed_seconds=1.25)
    save_checkpoint(tmp_path, state, INFO, progress)
    # Whole, though both devices have it: to cut out a part of each, Orbax would compile a program per shape.
    assert [path.name for path in (tmp_path / "checkpoints/5/params/head.bias/c").iterdir()] == ["0"]
    restored, info, same_progress = restore_checkpoint(tmp_path, abstract(2))
    assert_same(restored, state)
    assert (info, same_progress) == (INFO, progress)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_state_moves_to_another_number_of_devices(tmp_path, before, after):
    state = make_state(num_devices=before)
    save_checkpoint(tmp_path, state, INFO, Progress(step=1))
    restored, _, _ = restore_checkpoint(tmp_path, abstract(after))
    assert_same(restored, state)


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path):
    step, streams = trained_on(1)
    state = make_state()
    expected = jax.tree.map(np.array, jax.device_get(state.params))
    with CheckpointStore(tmp_path, INFO) as store:
        store.save(state, Progress(step=0))
        for _ in range(20):
            state, _ = step(state, streams)
    assert_same(load_params(tmp_path)[0], expected)
    assert_same(restore_checkpoint(tmp_path, abstract())[0].params, expected)


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    states = save(tmp_path, {0: None, 1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: None, 6: 2.4})
    assert steps(tmp_path) == [2, 5, 6]
    model, params, vocab = load_model(tmp_path)
    assert (model, vocab) == (MODEL, CORPUS.vocab)
    assert_same(params, jax.device_get(states[2].params))


def test_no_save_is_left_out_while_another_is_written(tmp_path):
    save(tmp_path, {step: 10.0 - step for step in range(6)})
    assert steps(tmp_path) == [4, 5]


def test_before_the_first_evaluation_the_latest_is_loaded(tmp_path):
    states = save(tmp_path, {0: None, 7: None})
    assert_same(load_params(tmp_path)[0], jax.device_get(states[7].params))


def test_relative_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = make_state()
    save_checkpoint("run", state, INFO, Progress(step=1))
    assert_same(restore_checkpoint("run", abstract())[0], state)


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_files_hold_no_pickle(saved):
    for path in files(saved[0]):
        assert path.suffix not in (".pkl", ".pickle")
        assert not path.read_bytes().startswith(b"\x80\x04")


# Damage


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "one bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 4]),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "removed"])
def test_any_damaged_file_is_noticed(run, damage):
    for path in files(run / "checkpoints" / "2"):
        content = path.read_bytes()
        if not content and damage != "removed":
            continue  # Orbax's mark that a save is complete has only a name
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](content))
        assert read_header(run, quiet=True).progress.step == 1, path
        path.write_bytes(content)
    assert read_header(run).progress.step == 2


def test_a_damaged_checkpoint_gives_way_to_the_one_before(saved, run, caplog):
    (array,) = (run / "checkpoints" / "2" / "params" / "head.kernel" / "c").rglob("0/0")
    array.write_bytes(array.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, logger="charjax"):
        restored, _, progress = restore_checkpoint(run, abstract())
    assert progress.step == 1
    assert_same(restored, saved[1][1])
    assert re.search(r"checkpoint 2 of .* cannot be read .*head.kernel.* is damaged.*; using checkpoint 1", caplog.text)
    with CheckpointStore(run, INFO, step=1) as store:
        store.save(make_state(), Progress(step=2, val_loss=1.5))
    assert steps(run) == [1, 2]
    assert (run / "checkpoints" / "2.set-aside").is_dir()
    assert read_header(run).progress.val_loss == 1.5


def test_where_every_checkpoint_is_damaged_the_first_is_named(run):
    for step in (1, 2):
        shutil.rmtree(run / "checkpoints" / str(step) / "params")
    with pytest.raises(UserError, match=r"checkpoint 2 of .* cannot be read .*, nor can any other checkpoint"):
        read_header(run)


@pytest.mark.parametrize("content", [b"[" * 200_000, b"[]", b"null", b'{"a": 1}', b'{"a": ["b"]}', b"\xff", b"{"])
def test_digests_of_another_kind_are_damaged(tmp_path, content):
    (tmp_path / DIGESTS).write_bytes(content)
    with pytest.raises(DamagedError, match="is damaged"):
        check_digests(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "", "\ud800", "missing/x", "."])
def test_digests_of_files_that_are_not_there_are_damage(tmp_path, name):
    (tmp_path / DIGESTS).write_text(json.dumps({name: "0" * 64}))
    with pytest.raises(DamagedError, match=r"is missing|is not a regular file"):
        check_digests(tmp_path)


def test_an_unfinished_save_is_ignored(run):
    (run / "checkpoints" / "2" / DIGESTS).unlink()
    assert read_header(run).progress.step == 1
    unfinished = run / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "1", unfinished)
    assert read_header(run).progress.step == 1
    with CheckpointStore(run, INFO, step=1):
        pass
    assert not unfinished.exists()
    assert steps(run) == [1]


# Checkpoints that do not match


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 13}, r"params/head/kernel is float32\[12, \d+\], not float32\[13, \d+\]"),
        (
            {"hidden_layers": 3},
            r"different version of charjax \(params/layer_2/cell/bias is missing, not float32\[48\]\)",
        ),
        (
            {"hidden_layers": 1},
            r"different version of charjax \(params/layer_1/cell/bias is float32\[48\], not missing\)",
        ),
    ],
)
def test_arrays_of_another_shape_are_named(run, options, message):
    with pytest.raises(UserError, match=message) as caught:
        restore_checkpoint(run, abstract(model=small_model(CORPUS, **options)))
    assert str(caught.value).startswith("checkpoint 2 of ")
    assert "\n" not in str(caught.value)


def test_arrays_of_another_dtype_are_named(run):
    """Orbax would cast them."""
    state = abstract()
    step = jax.ShapeDtypeStruct((), np.float32, sharding=state.step.sharding)
    with pytest.raises(UserError, match=r"\(training/step is int32\[\], not float32\[\]\)"):
        restore_checkpoint(run, state.replace(step=step))


def test_a_batch_of_another_size_is_named(run):
    """Orbax would pad the carry."""
    with pytest.raises(UserError, match=r"\(training/carry/0/c is float32\[8, 12\], not float32\[9, 12\]\)"):
        restore_checkpoint(run, abstract(batch_size=9))


def test_a_state_that_lacks_a_part_is_of_another_version(tmp_path, monkeypatch):
    def only_step(state):
        return {"params": state.params, "training": {"step": state.step}}

    with monkeypatch.context() as patch:
        patch.setattr("charjax.runs.checkpoint_store.checkpoint_parts", only_step)
        save_checkpoint(tmp_path, make_state(), INFO, Progress(step=1))
    with pytest.raises(UserError, match=r"checkpoint 1 of .* different version of charjax \(training/.* is missing"):
        restore_checkpoint(tmp_path, abstract())


def test_an_error_of_orbax_becomes_one_line(run, monkeypatch):
    def fail(*_):
        raise KeyError("registry") from ValueError("chunk\nhas no end")

    monkeypatch.setattr(checkpoint_module.ocp, "load_checkpointables", fail)
    with pytest.raises(UserError, match=r"checkpoint 2 of .* cannot be read \(ValueError: 'chunk\\nhas no end'\)"):
        restore_checkpoint(run, abstract())


@pytest.mark.parametrize(
    ("places", "value", "message"),
    [
        (("progress", "step"), 3, "is a checkpoint for step 3; rename it to 3"),
        (("progress", "step"), -1, "different version of charjax: Progress.step must be a number from 0"),
        (("progress", "elapsed_seconds"), float("inf"), "Progress.elapsed_seconds must be a number"),
        (("progress",), None, "Progress must have the fields"),
        (("info",), [], "RunInfo must have the fields"),
        (("info", "model", "hidden_dim"), 0, "hidden_dim must be"),
    ],
)
def test_metadata_is_checked(run, places, value, message):
    folder = run / "checkpoints" / "2"
    content = json.loads((folder / METADATA).read_text())
    values = content["custom_metadata"]
    for place in places[:-1]:
        values = values[place]
    values[places[-1]] = value
    (folder / METADATA).write_text(json.dumps(content))
    assert read_header(run, quiet=True).progress.step == 1  # noticed as damage
    write_digests(folder)
    with pytest.raises(UserError, match=message):
        read_header(run)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file, not a run folder"),
        (lambda path: path.mkdir(), "is not a run folder: it has no checkpoints"),
    ],
)
def test_what_is_not_a_run_is_named(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        restore_checkpoint(tmp_path / "run", abstract())


def test_links_in_the_checkpoints_folder_are_removed_and_not_followed(run, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("precious")
    for name in ("7.removed", "7.orbax-checkpoint-tmp", "9.set-aside"):
        (run / "checkpoints" / name).symlink_to(outside)
    for name in ("8", "9"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "8" / "_CHECKPOINT_METADATA").touch()
    (run / "checkpoints" / "9" / DIGESTS).touch()
    with CheckpointStore(run, INFO, step=2):
        pass
    assert (outside / "file").read_text() == "precious"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1", "2", "9.set-aside"]
