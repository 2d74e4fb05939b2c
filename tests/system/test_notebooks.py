"""The notebooks: their code matches the package, they run, and what is committed is a full run."""

import ast
import base64
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
FIGURES = {"coffee": 3, "shakespeare": 6}
# Cells that only set values or train without a bar have nothing to show.
SILENT = {"coffee": {"install", "parameters", "watching"}, "shakespeare": {"install", "parameters"}}
SMALL = {"hidden_dim": 16, "epochs": 1, "long_epochs": 2, "length": 80, "num_sampled": 8}


def run(*arguments):
    """Runs notebooks/run.py in a separate process."""
    command = [sys.executable, NOTEBOOKS / "run.py", *arguments]
    return subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)


def read(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def tagged(notebook, tag):
    """Returns the position and the source of the one code cell with a tag."""
    cells = code_cells(notebook)
    (position,) = (at for at, cell in enumerate(cells) if tag in cell["metadata"].get("tags", []))
    return position, source(cells[position])


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def shown(notebook, kind):
    """Returns all that a notebook displays of a kind such as image/png."""
    displayed = [output["data"] for output in outputs(notebook) if "data" in output]
    return ["".join(data[kind]) for data in displayed if kind in data]


def check_outputs(notebook, figures):
    """Checks that all cells ran in order, without an error or a line on stderr, drew their figures and a bar."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs(notebook)} <= {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs(notebook)} == {"stdout"}
    pictures = shown(notebook, "image/png")
    assert len(pictures) == figures
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    (progress,) = shown(notebook, "text/html")
    assert "<progress" in progress
    assert "<svg" in progress


def without_magics(code):
    """Returns a cell's source as Python, with what %pip is passed as the argument of a function."""
    return re.sub(r"%pip (.*)", lambda found: f"pip({found[1]!r})", code)


@pytest.mark.parametrize("name", FIGURES)
def test_the_first_cell_installs_charjax_only_where_it_is_missing(root, monkeypatch, name):
    cell = code_cells(read(name))[0]
    passed = []
    exec(without_magics(source(cell)), {"pip": passed.append})
    assert not passed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(without_magics(source(cell)), {"pip": passed.append})
    (extra,) = re.fullmatch(r'install --quiet "charjax\[(\w+)\]"', passed[0]).groups()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "matplotlib" in project["optional-dependencies"][extra][0]


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_needs_no_file_of_the_clone(name):
    code = "\n".join(source(cell) for cell in code_cells(read(name)))
    assert f'data_path("{name}.txt")' in code
    assert not re.search(r"\.\./|data_files|sys\.path", code)


@pytest.mark.parametrize("name", FIGURES)
def test_imported_names_exist(name):
    tree = ast.parse("\n".join(without_magics(source(cell)) for cell in code_cells(read(name))))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [(node.module, alias.name) for node in imports for alias in node.names if "charjax" in node.module]
    assert {"fit", "generate_text"} <= {imported for _, imported in names}
    for module, imported in names:
        assert hasattr(importlib.import_module(module), imported), f"{module}.{imported}"


@pytest.mark.slow
def test_coffee_runs_at_small_settings(tmp_path):
    settings = [part for item in SMALL.items() for part in ("--set", "=".join(map(str, item)))]
    out = tmp_path / "executed.ipynb"
    done = run(NOTEBOOKS / "coffee.ipynb", *settings, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    executed = json.loads(out.read_text(encoding="utf-8"))
    check_outputs(executed, FIGURES["coffee"])
    values = {}
    exec(tagged(executed, "parameters")[1], values)
    assert SMALL.items() <= values.items()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_runs_in_full(tmp_path, name):
    out = tmp_path / "executed.ipynb"
    done = run(NOTEBOOKS / f"{name}.ipynb", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    check_outputs(json.loads(out.read_text(encoding="utf-8")), FIGURES[name])


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_committed_is_a_full_run(name):
    notebook = read(name)
    check_outputs(notebook, FIGURES[name])
    assert {cell["id"] for cell in code_cells(notebook) if not cell["outputs"]} == SILENT[name]
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 1_500_000
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
    printed = "".join("".join(output.get("text", [])) for output in outputs(notebook))
    printed += "".join(shown(notebook, "text/html"))
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|[A-Z]:\\|0x[0-9a-f]{6}", printed)
    assert printed.replace("\n", "").isprintable()


def test_the_first_model_takes_fewer_than_ten_lines_and_generates():
    notebook = read("coffee")
    position, code = tagged(notebook, "first-model")
    assert position == 2  # it needs nothing but charjax and the parameters
    assert "fit(" in code
    assert "generate_text(" in code
    assert len([line for line in code.splitlines() if line.strip()]) < 10
    (text,) = (output["text"] for output in code_cells(notebook)[position]["outputs"] if "text" in output)
    assert len("".join(text)) > 300


def test_the_lowest_possible_loss_is_the_entropy_of_the_text(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "data_files")
    import make_coffee

    (floor,) = re.findall(r"^floor = ([\d.]+)$", "\n".join(map(source, code_cells(read("coffee")))), re.MULTILINE)
    assert floor == f"{make_coffee.entropy():.4f}"
    assert floor in (root / "data_files" / "README.md").read_text(encoding="utf-8")


MINIMAL = """\
size = 1  # é, of something
name = "plain"; share = 0.5
twice = True
"""


def write_notebook(path, *sources):
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for n, text in enumerate(sources)
    ]
    cells[0]["metadata"] = {"tags": ["parameters"]}
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_parameters_are_replaced_and_cells_run_in_the_folder_of_the_notebook(tmp_path):
    show = "import os, sys\nprint(size, name, share, twice, sys.executable)\nprint(os.listdir())"
    path = write_notebook(tmp_path / "n.ipynb", MINIMAL, show)
    settings = ["size=-3", "name=it's", "share=2", "twice=False"]
    out = tmp_path / "out.ipynb"
    done = run(path, *(part for setting in settings for part in ("--set", setting)), "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(path))}: 2 cells in \d+ s\n", done.stdout)
    first, second = code_cells(json.loads(out.read_text(encoding="utf-8")))
    assert source(first).splitlines() == [
        "size = -3  # é, of something",
        """name = "it's"; share = 2""",
        "twice = False",
    ]
    (printed,) = second["outputs"]
    assert "".join(printed["text"]).splitlines() == [f"-3 it's 2 False {sys.executable}", "['n.ipynb']"]


def test_a_cell_that_fails_is_shown_and_nothing_is_written(tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", MINIMAL, "1 / (size - 1)")
    before = path.read_bytes()
    done = run(path, "--out", path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "n.ipynb" in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["n.ipynb"]


@pytest.fixture(scope="module")
def runner():
    """notebooks/run.py as a module."""
    spec = importlib.util.spec_from_file_location("run_notebook", NOTEBOOKS / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(runner, capsys, *arguments):
    """Runs notebooks/run.py in this process and returns the one line with which it refuses its arguments."""
    with pytest.raises(SystemExit) as exit_info:
        runner.main([str(argument) for argument in arguments])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("run.py: error: ")


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("sise=3", "there is no parameter 'sise'; the notebook has size, name, share, twice"),
        ("size", "--set size is not NAME=VALUE"),
        ("size=many", "size must be of type int, such as 1, not 'many'"),
        ("size=1.5", "size must be of type int, such as 1, not '1.5'"),
        ("size=True", "size must be of type int, such as 1, not 'True'"),
        ("share=", "share must be of type float, such as 0.5, not ''"),
        ("twice=1", "twice must be of type bool, such as True, not '1'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(runner, capsys, tmp_path, setting, why):
    assert refused(runner, capsys, write_notebook(tmp_path / "n.ipynb", MINIMAL), "--set", setting) == why


def test_a_wrong_file_is_refused_in_one_line(runner, capsys, tmp_path):
    missing, other = tmp_path / "no.ipynb", tmp_path / "other.ipynb"
    other.write_text('{"cells": 3}')
    good = write_notebook(tmp_path / "n.ipynb", MINIMAL)
    assert refused(runner, capsys, missing) == f"{missing} cannot be read (No such file or directory)"
    assert refused(runner, capsys, tmp_path) == f"{tmp_path} cannot be read (Is a directory)"
    assert refused(runner, capsys, other) == f"{other} is not a notebook in format 4"
    inside = tmp_path / "no" / "n.ipynb"
    assert refused(runner, capsys, good, "--out", inside) == (
        f"{inside} cannot be written: {tmp_path}/no is not a folder"
    )
