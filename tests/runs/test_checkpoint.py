"""Checkpoints: exact, safe against every kind of damage, and readable without anything but the folder."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from helpers.small_run import SMALL, TEXT, assert_same, small_corpus, small_model

from charjax import fit, load_model, restore_checkpoint, save_checkpoint
from charjax.cli import main as cli
from charjax.data.batching import make_streams
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.errors import UserError
from charjax.ops.lstm.api import IMPLEMENTATIONS
from charjax.runs.checkpoint import load_params, read_header
from charjax.runs.checkpoint_store import CheckpointStore
from charjax.runs.compatibility import describe_run
from charjax.runs.integrity import SEAL
from charjax.runs.metadata import Progress
from charjax.train_state import abstract_train_state, init_train_state
from charjax.training.optimizer import make_optimizer
from charjax.training.step import make_train_step

CORPUS = small_corpus(vocab="chars")
MODEL = small_model(CORPUS)
INFO = describe_run(MODEL, CORPUS, SMALL)
OPTIMIZER = make_optimizer(SMALL, 100)


def make_state(seed=0, num_devices=8):
    mesh = make_mesh(jax.devices()[:num_devices])
    return init_train_state(jax.random.key(seed), MODEL, OPTIMIZER, batch_size=8, mesh=mesh)


def abstract(num_devices=8):
    return abstract_train_state(MODEL, OPTIMIZER, batch_size=8, mesh=make_mesh(jax.devices()[:num_devices]))


def save(path, losses):
    """Saves a state per step, with the validation loss given; -> the states."""
    states, best = {}, (None, None)
    with CheckpointStore(path, INFO) as store:
        for step, loss in losses.items():
            if loss is not None and (best[1] is None or loss < best[1]):
                best = (step, loss)
            states[step] = make_state(step)
            progress = Progress(step=step, val_loss=loss, best_step=best[0], best_val_loss=best[1])
            store.save(states[step], progress)
    return states


def steps(path):
    return sorted(int(folder.name) for folder in (path / "checkpoints").glob("[0-9]*") if folder.name.isdigit())


def test_a_state_comes_back_bit_for_bit(tmp_path):
    step = make_train_step(MODEL, OPTIMIZER, seq_len=16)
    streams = put_streams(make_streams(CORPUS.train, batch_size=8, seq_len=16), make_mesh())
    state, _ = step(make_state(), streams, 5)
    progress = Progress(step=5, epoch=0.25, val_loss=2.5, best_step=5, best_val_loss=2.5, elapsed_seconds=1.25)
    save_checkpoint(tmp_path, state, INFO, progress)
    restored, info, same_progress = restore_checkpoint(tmp_path, abstract())
    assert_same(restored, state)
    assert (info, same_progress) == (INFO, progress)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_state_moves_to_another_number_of_devices(tmp_path, before, after):
    state = make_state(num_devices=before)
    save_checkpoint(tmp_path, state, INFO, Progress(step=1))
    restored, _, _ = restore_checkpoint(tmp_path, abstract(after))
    assert_same(restored, state)


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path):
    step = make_train_step(MODEL, OPTIMIZER, seq_len=16)
    streams = put_streams(make_streams(CORPUS.train, batch_size=8, seq_len=16), make_mesh())
    state = make_state()
    expected = jax.tree.map(np.array, jax.device_get(state.params))
    with CheckpointStore(tmp_path, INFO) as store:
        store.save(state, Progress(step=0))
        for _ in range(20):
            state, _ = step(state, streams)
    params, _, _ = load_params(tmp_path)
    assert_same(params, expected)


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    save(tmp_path, {0: None, 1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: None, 6: 2.4})
    assert steps(tmp_path) == [2, 5, 6]


def test_no_save_is_left_out_while_another_goes_on(tmp_path):
    save(tmp_path, {step: 10.0 - step for step in range(12)})
    assert steps(tmp_path) == [10, 11]


def test_a_run_of_another_machines_implementation_is_used_with_the_default(tmp_path, monkeypatch, caplog, capfd):
    corpus = small_corpus()
    with monkeypatch.context() as there:
        there.setitem(IMPLEMENTATIONS, "cudnn", IMPLEMENTATIONS["scan"])
        model = small_model(corpus, implementation="cudnn")
        state = fit(model, corpus, batch_size=8, seq_len=16, epochs=1, out=tmp_path / "run")
    with caplog.at_level("WARNING", "charjax"):
        loaded, params, _ = load_model(tmp_path / "run")
    assert loaded == model.clone(implementation=None)
    assert "'cudnn' serves GPUs alone" in caplog.text
    assert_same(params, jax.device_get(state.params))
    run = str(tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for command in (["sample", run, "--length", "5"], ["eval", run, str(text)], ["info", run]):
        assert cli.main(command) == 0, capfd.readouterr().err


def test_load_model_needs_nothing_but_the_folder(tmp_path):
    states = save(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0})
    model, params, vocab = load_model(tmp_path)
    assert (model, vocab) == (MODEL, CORPUS.vocab)
    assert_same(params, jax.device_get(states[2].params))


def test_before_the_first_evaluation_the_latest_is_loaded(tmp_path):
    states = save(tmp_path, {0: None, 7: None})
    assert_same(load_params(tmp_path)[0], jax.device_get(states[7].params))


def test_relative_paths_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = make_state()
    save_checkpoint("run", state, INFO, Progress(step=1))
    assert_same(restore_checkpoint("run", abstract())[0], state)


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_files_hold_no_pickle(tmp_path):
    save(tmp_path, {1: 3.0})
    for path in files(tmp_path):
        assert path.suffix not in (".pkl", ".pickle")
        assert not path.read_bytes().startswith(b"\x80\x04")


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "one bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 4]),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "removed"])
def test_any_damaged_file_is_noticed(tmp_path, damage):
    states = save(tmp_path, {1: 3.0, 2: 2.0})
    for path in files(tmp_path / "checkpoints" / "2"):
        content = path.read_bytes()
        if not content and damage != "removed":
            continue  # Orbax's mark, of which the name says all
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](content))
        restored, _, progress = restore_checkpoint(tmp_path, abstract())
        assert progress.step == 1, path
        assert_same(restored, states[1])
        path.write_bytes(content)
    assert restore_checkpoint(tmp_path, abstract())[2].step == 2


def test_a_fall_back_is_told_of_and_the_damaged_one_is_set_aside(tmp_path, caplog):
    save(tmp_path, {1: 3.0, 2: 2.0})
    (metadata,) = (tmp_path / "checkpoints" / "2").glob("_CHECKPOINT_METADATA")
    metadata.write_text(metadata.read_text()[:40])
    with caplog.at_level(logging.WARNING, logger="charjax"):
        _, _, progress = restore_checkpoint(tmp_path, abstract())
    assert progress.step == 1
    assert re.search(r"checkpoint 2 of .* cannot be read .*using checkpoint 1 in its place", caplog.text)
    with CheckpointStore(tmp_path, INFO, step=1) as store:
        store.save(make_state(), Progress(step=2, val_loss=1.5))
    assert steps(tmp_path) == [1, 2]
    assert (tmp_path / "checkpoints" / "2.set-aside").is_dir()
    assert read_header(tmp_path).progress.val_loss == 1.5


def test_a_damaged_best_gives_way_to_the_latest(tmp_path, caplog):
    states = save(tmp_path, {1: 1.0, 2: 3.0, 3: 2.0})
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "params")
    params, _, progress = load_params(tmp_path)
    assert progress.step == 3
    assert_same(params, jax.device_get(states[3].params))
    assert "checkpoint 1" in caplog.text


def test_where_no_checkpoint_can_be_read_the_run_is_named(tmp_path):
    save(tmp_path, {1: 1.0})
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "params")
    with pytest.raises(UserError, match=r"checkpoint 1 of .* cannot be read .* no other one can; train anew"):
        load_model(tmp_path)


def test_numbers_changed_in_the_description_are_noticed(tmp_path):
    save(tmp_path, {1: 3.0, 2: 2.0})
    metadata = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    content = json.loads(metadata.read_text())
    content["custom_metadata"]["progress"]["best_val_loss"] = 0.1
    metadata.write_text(json.dumps(content))
    assert read_header(tmp_path).progress.step == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file, no run folder"),
        (lambda path: path.mkdir(), "has no checkpoints"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "run")


def test_a_save_killed_before_its_seal_is_passed_over(tmp_path):
    save(tmp_path, {1: 3.0, 2: 2.0})
    (tmp_path / "checkpoints" / "2" / SEAL).unlink()
    assert read_header(tmp_path).progress.step == 1


def test_an_unfinished_save_is_passed_over(tmp_path):
    save(tmp_path, {1: 3.0})
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    assert read_header(tmp_path).progress.step == 1
    with CheckpointStore(tmp_path, INFO, step=1):
        pass
    assert not (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").exists()
