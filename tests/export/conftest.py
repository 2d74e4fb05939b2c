"""A model whose sizes all differ, with biases: zeros would hide a wrong order of the gates."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.command_line import shows

from charjax import CharLSTM, Vocab, init_params, save_model


class Saved(NamedTuple):
    """A model folder and what it holds, in the portable implementation."""

    folder: object
    model: CharLSTM
    params: object
    vocab: Vocab


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    vocab = Vocab.from_text("The barista brews ☕.\n")
    model = CharLSTM(vocab.size, hidden_dim=6, hidden_layers=3, implementation="scan", dtype="float32")
    shapes, rng = jax.eval_shape(lambda: init_params(jax.random.key(0), model)), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, model, params, vocab)
    return Saved(folder, model, params, vocab)


@pytest.fixture
def export(capsys, saved, tmp_path, monkeypatch):
    """Returns a function that exports the model with the command, and returns the lines of Python that it prints."""
    monkeypatch.chdir(tmp_path)

    def run(to, name):
        written, lines = shows(capsys, "export", saved.folder, "--to", to, "--out", name).split("\n\n", 1)
        assert written.startswith(f"written  {name}, ")
        return lines

    return run
