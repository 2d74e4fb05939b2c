"""A run that was killed before its first checkpoint is started over; any other folder is left alone."""

import json
import logging
import os
import shutil

import jax
import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit
from charjax.distributed.mesh import make_mesh
from charjax.errors import UserError
from charjax.runs.integrity import DIGESTS
from charjax.runs.model_file import read_info
from charjax.runs.safe_files import LARGEST_JSON
from charjax.runs.unfinished import is_unfinished_start, remove_unfinished_start

CORPUS = small_corpus()
MODEL = small_model(CORPUS)


def train(out, **options):
    return fit(MODEL, CORPUS, SMALL, epochs=1, out=out, mesh=make_mesh(jax.devices()[:1]), **options)


@pytest.fixture
def killed(finished, tmp_path):
    """A run as SIGKILL leaves it between Orbax's commit of the first checkpoint and its digests."""
    run = tmp_path / "killed"
    shutil.copytree(finished, run)
    first, *later = sorted((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for path in later:
        shutil.rmtree(path)
    first.rename(run / "checkpoints" / "0")
    (run / "checkpoints" / "0" / DIGESTS).unlink()
    (run / "model.safetensors").unlink()
    for name in ("metrics.jsonl", "samples.txt"):
        (run / name).write_text("")
    return run


def test_a_run_killed_before_its_first_checkpoint_is_started_over(killed, caplog):
    with caplog.at_level(logging.INFO, logger="charjax"):
        train(killed)
    assert "stopped before its first checkpoint was complete; starting it over" in caplog.text
    assert (killed / "metrics.jsonl").read_text()


def test_a_run_killed_during_its_first_save_is_started_over(killed):
    (killed / "checkpoints" / "0").rename(killed / "checkpoints" / "0.orbax-checkpoint-tmp")
    train(killed)
    assert not (killed / "checkpoints" / "0.orbax-checkpoint-tmp").exists()


def test_resuming_it_says_what_to_do(killed):
    with pytest.raises(UserError, match="start it over by running charjax train without --resume"):
        train(killed, resume=True)


def test_it_is_kept_if_the_new_run_is_refused(killed):
    before = sorted(killed.rglob("*"))
    with pytest.raises(UserError, match="epochs"):
        fit(MODEL, CORPUS, SMALL, epochs=10**12, out=killed)
    assert sorted(killed.rglob("*")) == before


@pytest.mark.parametrize(
    "left",
    [
        [".config.json.12.new"],
        ["config.json"],
        ["config.json", ".vocab.json.12.new"],
        ["config.json", "vocab.json"],
        ["config.json", "vocab.json", "metrics.jsonl"],
    ],
)
def test_every_stage_of_the_start_is_recognized(killed, left):
    for name in (".config.json.12.new", ".vocab.json.12.new"):
        (killed / name).write_text("{")
    for path in killed.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert is_unfinished_start(killed)
    remove_unfinished_start(killed)
    assert list(killed.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["notes.txt", "model.safetensors", "checkpoints/notes.txt", "checkpoints/7/x", f"checkpoints/0/{DIGESTS}"]
)
def test_what_charjax_did_not_write_is_left_alone(killed, name):
    (killed / name).parent.mkdir(exist_ok=True)
    (killed / name).write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        train(killed)
    assert (killed / name).read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "mine", "[1]", '{"model": {}}', "[" * 100_000, " " * (LARGEST_JSON + 1)])
def test_another_programs_config_is_left_alone(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert not is_unfinished_start(tmp_path)


def test_a_run_with_results_is_left_alone(killed, finished):
    assert not is_unfinished_start(finished)
    (killed / "metrics.jsonl").write_text("{}\n")
    assert not is_unfinished_start(killed)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    assert not is_unfinished_start(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "config.json"])
def test_a_run_is_not_started_over_through_links(killed, tmp_path, name):
    (killed / name).rename(tmp_path / "elsewhere")
    (killed / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="already exists"):
        train(killed)
    assert (tmp_path / "elsewhere").exists()


def test_a_run_of_an_earlier_version_is_recognized(killed):
    """It kept its vocabulary in config.json."""
    content = json.loads((killed / "config.json").read_text())
    content["vocab"] = json.loads((killed / "vocab.json").read_text())
    (killed / "config.json").write_text(json.dumps(content))
    (killed / "vocab.json").unlink()
    assert is_unfinished_start(killed)


def test_temporary_files_of_a_killed_write_are_removed_by_the_next_run(run):
    for name in (".model.safetensors.12.new", ".config.json.345.new"):
        (run / name).write_text("half")
    train(run, resume=True)
    assert not list(run.glob(".*"))
    read_info(run)
