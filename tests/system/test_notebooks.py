"""The notebooks run from top to bottom at small settings; what is committed is a full run, fit to be read."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest

SMALL = {
    "coffee": {"hidden_dim": 16, "epochs": 1, "long_epochs": 2, "length": 80, "num_drawn": 8},
    "shakespeare": {
        "characters": 40_000,
        "hidden_dim": 12,
        "epochs": 1,
        "eval_every": 6,
        "length": 40,
        "num_characters": 3_000,
    },
}
FIGURES = {"coffee": 3, "shakespeare": 7}


def run(root, *arguments):
    """Runs the runner, one JAX device per core as for a user, its compiled programs kept between runs of the tests."""
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, root / "notebooks" / "run.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def check_outputs(notebook, figures):
    """What holds of a run at any settings: all cells, in order, without an error or a word on stderr, with figures."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs(notebook)} <= {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs(notebook)} == {"stdout"}
    pictures = [output["data"]["image/png"] for output in outputs(notebook) if "data" in output]
    assert len(pictures) == figures
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_at_small_settings(root, tmp_path, name):
    settings = [part for item in SMALL[name].items() for part in ("--set", "=".join(map(str, item)))]
    out = tmp_path / "executed.ipynb"
    done = run(root, root / "notebooks" / f"{name}.ipynb", *settings, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    executed = read(out)
    check_outputs(executed, FIGURES[name])
    (parameters,) = (cell for cell in code_cells(executed) if "parameters" in cell["metadata"].get("tags", []))
    values = {}
    exec(source(parameters), values)
    assert SMALL[name].items() <= values.items()


@pytest.mark.parametrize("name", SMALL)
def test_what_is_committed_is_a_full_run(root, name):
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = read(path)
    check_outputs(notebook, FIGURES[name])
    quiet = {cell["id"] for cell in code_cells(notebook) if not cell["outputs"]}
    # Cells that set values or train, and nothing else, have nothing to show.
    assert quiet == {"coffee": {"parameters", "watching"}, "shakespeare": {"parameters", "training"}}[name]
    assert path.stat().st_size < 1_500_000
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
    printed = "".join("".join(output.get("text", [])) for output in outputs(notebook))
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|[A-Z]:\\|0x[0-9a-f]{6}", printed)
    assert printed.replace("\n", "").isprintable()


def test_the_first_model_takes_fewer_than_ten_lines(root):
    cells = code_cells(read(root / "notebooks" / "coffee.ipynb"))
    (first,) = (cell for cell in cells if "first-model" in cell["metadata"].get("tags", []))
    lines = [line for line in source(first).splitlines() if line.strip()]
    assert "fit(" in source(first)
    assert "generate_text(" in source(first)
    assert len(lines) < 10
    # The parameters are all that it stands on.
    assert cells.index(first) == 1


def test_the_first_model_has_written(root):
    cells = code_cells(read(root / "notebooks" / "coffee.ipynb"))
    assert len("".join(cells[1]["outputs"][0]["text"])) > 300


MINIMAL = """\
size = 1  # é, of something
name = "plain"; share = 0.5
twice = True
"""


def write_notebook(path, *sources):
    cells = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "source": text,
            "outputs": [],
            "execution_count": None,
        }
        for number, text in enumerate(sources)
    ]
    cells[0]["metadata"] = {"tags": ["parameters"]}
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_parameters_are_set_where_they_stand_and_cells_run_in_the_notebooks_folder(root, tmp_path):
    show = "import os, sys\nprint(size, name, share, twice, sys.executable)\nprint(os.listdir())"
    path = write_notebook(tmp_path / "n.ipynb", MINIMAL, show)
    settings = ["size=-3", "name=it's", "share=2", "twice=False"]
    out = tmp_path / "out.ipynb"
    done = run(root, path, *(part for setting in settings for part in ("--set", setting)), "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(path))}: 2 cells in \d+ s\n", done.stdout)
    first, second = code_cells(read(out))
    assert source(first).splitlines() == [
        "size = -3  # é, of something",
        """name = "it's"; share = 2""",
        "twice = False",
    ]
    (printed,) = second["outputs"]
    lines = "".join(printed["text"]).splitlines()
    assert lines == [f"-3 it's 2 False {sys.executable}", "['n.ipynb']"]


def test_a_cell_that_fails_is_shown_and_nothing_is_written(root, tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", MINIMAL, "1 / (size - 1)")
    done = run(root, path, "--out", path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "n.ipynb" in done.stderr
    assert not code_cells(read(path))[1]["outputs"]
    assert os.listdir(tmp_path) == ["n.ipynb"]


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("sise=3", "there is no parameter 'sise'; the notebook has size, name, share, twice"),
        ("size", "--set size is not of the form NAME=VALUE"),
        ("size=many", "size must be of type int, such as 1, not 'many'"),
        ("size=1.5", "size must be of type int, such as 1, not '1.5'"),
        ("size=True", "size must be of type int, such as 1, not 'True'"),
        ("share=", "share must be of type float, such as 0.5, not ''"),
        ("twice=1", "twice must be of type bool, such as True, not '1'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(root, tmp_path, setting, why):
    done = run(root, write_notebook(tmp_path / "n.ipynb", MINIMAL), "--set", setting)
    assert (done.returncode, done.stderr) == (2, f"run.py: error: {why}\n")


def test_files_that_cannot_be_are_refused_in_one_line(root, tmp_path):
    missing, other = tmp_path / "no.ipynb", tmp_path / "other.ipynb"
    other.write_text('{"cells": 3}')
    good = write_notebook(tmp_path / "n.ipynb", MINIMAL)
    for arguments, why in [
        ([missing], f"{missing} cannot be read (No such file or directory)"),
        ([tmp_path], f"{tmp_path} cannot be read (Is a directory)"),
        ([other], f"{other} is not a notebook of format 4"),
        (
            [good, "--out", tmp_path / "no" / "n.ipynb"],
            f"{tmp_path}/no/n.ipynb cannot be written: there is no folder {tmp_path}/no",
        ),
    ]:
        done = run(root, *arguments)
        assert (done.returncode, done.stderr) == (2, f"run.py: error: {why}\n")
