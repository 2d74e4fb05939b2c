"""A trained run that the tests of the commands share."""

from typing import NamedTuple

import pytest
from helpers.command_line import run_in_fixture
from helpers.small_run import TEXT

OPTIONS = [
    "--hidden-dim=8", "--hidden-layers=1", "--batch-size=8", "--seq-len=16", "--epochs=1", "--sample-length=10",
    "--learning-rate=0.02",
]  # fmt: skip


class Trained(NamedTuple):
    """A finished run, its text, and the output of its training. Tests only read it, or copy it."""

    run: object
    text: object
    out: str
    err: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "coffee.txt"
    text.write_text(TEXT)
    return Trained(folder / "run", text, *run_in_fixture("train", text, "--out", folder / "run", *OPTIONS))


@pytest.fixture(scope="session")
def options():
    """The options of the shared run."""
    return OPTIONS


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "coffee.txt"
    path.write_text(TEXT)
    return path
