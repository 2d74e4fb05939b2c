"""`charjax eval` and `charjax info`: what they print about a run, and what they refuse."""

import json
import re
import shutil

import jax
import pytest
from helpers.command_line import fails, shows

from charjax import load_model, save_model
from charjax.runs.checkpoint import read_header


def test_eval_measures_the_validation_part(trained, capsys):
    out = shows(capsys, "eval", trained.run)
    assert f"loss        {read_header(trained.run).progress.best_val_loss:.4f} nats/char" in out
    assert "perplexity" in out
    assert "bits/char" in out
    assert f"text        the validation part of {trained.text}" in out


def test_eval_measures_any_text_and_notes_the_training_text(trained, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("Another text.")
    assert "characters  13\n" in shows(capsys, "eval", trained.run, tmp_path / "other.txt")
    assert "the run was trained on most of it" in shows(capsys, "eval", trained.run, trained.text)


def test_eval_without_the_training_text(capsys, trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    original = trained.text
    away = original.rename(original.with_name("away.txt"))
    try:
        assert "does not exist; pass a TEXT" in fails(capsys, "eval", tmp_path / "run")
        original.write_text("changed")
        assert "has changed since" in fails(capsys, "eval", tmp_path / "run")
    finally:
        away.rename(original)


def test_eval_of_texts_that_cannot_be_measured(capsys, trained, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    assert "nothing to predict" in fails(capsys, "eval", trained.run, tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("né")
    assert "line 1, column 2: 'é'" in fails(capsys, "eval", trained.run, tmp_path / "x.txt")


def test_info_shows_the_run_and_counts_its_parameters(trained, capsys):
    out = shows(capsys, "info", trained.run)
    _, params, _ = load_model(trained.run)
    assert f"1 x 8 LSTM, {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters" in out
    assert "coffee.txt" in out
    assert re.search(r"^--learning-rate +0.02$", out, re.MULTILINE)


def test_a_model_without_a_training_shows_only_what_is_known(trained, tmp_path, capsys):
    model, params, vocab = load_model(trained.run)
    save_model(tmp_path / "model", model, params, vocab)
    names = [line.split()[0] for line in shows(capsys, "info", tmp_path / "model").splitlines()]
    assert names == ["model", "vocabulary", "training"]
    found = json.loads(shows(capsys, "info", tmp_path / "model", "--json"))
    assert [name for name, value in found.items() if value is None] == ["data", "train", "corpus", "fit", "progress"]
    assert "--epochs" in shows(capsys, "info", tmp_path / "model", trained.run)
    for command, option in (("plot", "-o=x.svg"), ("report", "--html=x.html")):
        assert "is a model without the log of a training" in fails(capsys, command, tmp_path / "model", option)


@pytest.mark.parametrize("command", ["sample", "eval", "info"])
def test_folders_that_are_not_runs(capsys, tmp_path, command):
    assert "is not a run folder" in fails(capsys, command, tmp_path)
    assert "does not exist" in fails(capsys, command, tmp_path / "nowhere")
