"""A run folder that was left before its first checkpoint is started over; anything else is left alone."""

import logging
import shutil

import jax
import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit
from charjax.distributed.mesh import make_mesh
from charjax.errors import UserError
from charjax.runs.integrity import SEAL
from charjax.runs.unfinished import is_leftover, remove_leftovers

CORPUS = small_corpus()
MODEL = small_model(CORPUS)


def train(out, **options):
    return fit(MODEL, CORPUS, SMALL, epochs=1, out=out, mesh=make_mesh(jax.devices()[:1]), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder)
    return folder


@pytest.fixture
def killed(finished, tmp_path):
    """As SIGKILL leaves a run between Orbax's commit of the first checkpoint and its seal."""
    run = tmp_path / "killed"
    shutil.copytree(finished, run)
    first, *later = sorted((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for path in later:
        shutil.rmtree(path)
    first.rename(run / "checkpoints" / "0")
    (run / "checkpoints" / "0" / SEAL).unlink()
    for name in ("metrics.jsonl", "samples.txt"):
        (run / name).write_text("")
    return run


def test_a_run_killed_before_its_first_checkpoint_is_started_over(killed, caplog):
    with caplog.at_level(logging.INFO, logger="charjax"):
        train(killed)
    assert "stopped before its first checkpoint was complete: starting it over" in caplog.text
    assert (killed / "metrics.jsonl").read_text()


def test_a_save_cut_off_is_started_over_too(killed):
    (killed / "checkpoints" / "0").rename(killed / "checkpoints" / "0.orbax-checkpoint-tmp")
    train(killed)
    assert not (killed / "checkpoints" / "0.orbax-checkpoint-tmp").exists()


def test_resuming_it_says_what_to_do(killed):
    with pytest.raises(UserError, match="start it over: charjax train without --resume"):
        train(killed, resume=True)


def test_it_stays_where_the_new_run_is_refused(killed):
    before = sorted(killed.rglob("*"))
    with pytest.raises(UserError, match="epochs"):
        fit(MODEL, CORPUS, SMALL, epochs=10**12, out=killed)
    assert sorted(killed.rglob("*")) == before


@pytest.mark.parametrize("left", [["config.json.new"], ["config.json"], ["config.json", "metrics.jsonl"]])
def test_every_stage_of_the_start_is_known(killed, left):
    (killed / "config.json.new").write_text("{")
    for path in killed.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert is_leftover(killed)
    remove_leftovers(killed)
    assert list(killed.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/notes.txt", "checkpoints/7/x", f"checkpoints/0/{SEAL}"])
def test_what_charjax_did_not_write_is_left_alone(killed, name):
    (killed / name).parent.mkdir(exist_ok=True)
    (killed / name).write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        train(killed)
    assert (killed / name).read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "mine", "[1]"])
def test_another_programs_config_is_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert not is_leftover(tmp_path)


def test_a_run_that_has_told_something_is_no_leftover(killed, finished):
    assert not is_leftover(finished)
    (killed / "metrics.jsonl").write_text("{}\n")
    assert not is_leftover(killed)
