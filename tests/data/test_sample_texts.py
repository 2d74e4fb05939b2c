"""The sample texts: where they are in a clone and in an installed package."""

import runpy
import shutil

import pytest

from charjax import data_path
from charjax.data import sample_texts
from charjax.errors import UserError


def test_a_clone_has_them_beside_the_package(root):
    for name in ("coffee.txt", "shakespeare.txt"):
        assert data_path(name) == root / "data_files" / name
        assert data_path(name).is_file()


def test_an_installed_package_has_them_inside(tmp_path):
    module = tmp_path / "charjax" / "data" / "sample_texts.py"
    for folder in (module.parent, tmp_path / "charjax" / "data_files", tmp_path / "data_files"):
        folder.mkdir(parents=True)
    shutil.copy(sample_texts.__file__, module)
    inside = tmp_path / "charjax" / "data_files" / "coffee.txt"
    inside.touch()
    assert runpy.run_path(str(module))["data_path"]("coffee.txt") == inside


@pytest.mark.parametrize("name", ["tea.txt", "coffee", "../data_files/coffee.txt", "", ["coffee.txt"]])
def test_an_unknown_name_is_answered_with_those_there_are(name):
    with pytest.raises(UserError) as refused:
        data_path(name)
    assert str(refused.value) == f"name must be that of a sample text, coffee.txt or shakespeare.txt, not {name!r}"
