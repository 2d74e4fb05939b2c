"""A finished run for all tests of run folders."""

import shutil

import jax
import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit
from charjax.distributed.mesh import make_mesh


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of one epoch on one device, not to be changed."""
    corpus = small_corpus()
    run = tmp_path_factory.mktemp("finished") / "run"
    fit(small_model(corpus), corpus, SMALL, epochs=1, out=run, mesh=make_mesh(jax.devices()[:1]))
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
