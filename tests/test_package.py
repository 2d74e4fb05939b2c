"""The package as a whole: a cheap import, public names that type checkers see, and examples that run."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import charjax

SUBPACKAGES = {"export", "interop", "ops"}
NAMES = [
    *sorted(set(charjax.__all__) - SUBPACKAGES),
    *(
        "export.write_html",
        "export.write_onnx",
        "export.write_stablehlo",
        "export.write_torch",
        "interop.from_torch",
        "interop.to_torch",
    ),
]


def public(name):
    """Returns what a public name such as interop.to_torch refers to."""
    value = charjax
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_importing_it_imports_nothing_heavy():
    code = "import sys, charjax; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "charjax" in loaded
    assert not {"jax", "flax", "numpy", "optax", "orbax", "rich", "tyro"} & set(loaded)


def test_every_public_name_is_listed():
    assert set(charjax.__all__) <= set(dir(charjax))
    assert all(inspect.ismodule(getattr(charjax, name)) for name in SUBPACKAGES)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(charjax.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    imported = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    assert set(imported) == {*charjax.__all__, "__version__"}
    for public_name, (module, name) in imported.items():
        assert getattr(importlib.import_module(module), name) is getattr(charjax, public_name)


def test_the_citation_is_of_this_version(root):
    assert f"\nversion: {charjax.__version__}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'charjax' has no attribute 'train_all'"):
        charjax.train_all  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_public_name_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = public(name)
    assert "Examples:" in inspect.getdoc(value)
    # Examples import what they use: nothing comes from the module's own globals.
    found = [test for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}) if test.examples]
    assert found
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    for test in found:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_the_script_that_is_type_checked_uses_every_public_name(root):
    tree = ast.parse((root / "tests/typed/user_script.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "charjax"]
    assert [alias.name for node in imports for alias in node.names] == charjax.__all__
