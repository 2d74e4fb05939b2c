"""The commands and snippets of README.md and docs/ run as written, in order, in a folder with shorter texts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import charjax
from charjax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SETUP = "python3 -m venv .venv && .venv/bin/pip install --quiet "
THIS_PYTHON = f"{shlex.quote(sys.executable)} -m charjax "


def blocks(document, *languages):
    """Returns the (language, code) of a document's fenced blocks, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if block[0] in languages]


def commands(document):
    """Returns the command lines of a document's shell blocks, without their comments."""
    return [line for _, block in blocks(document, "bash") for line in block.splitlines()]


def run_in_shell(command, folder):
    """Runs a command with this Python's charjax instead of an installed one, and returns what it prints."""
    command = command.removeprefix(f"{SETUP}. && ").replace(".venv/bin/charjax ", THIS_PYTHON)
    command = re.sub(r"(^|\| )charjax ", rf"\g<1>{THIS_PYTHON}", command)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_command(command, folder, capsys):
    """Runs a command and returns all that it prints; one that needs no shell runs in this process, which is faster."""
    if "|" in command:
        return run_in_shell(command, folder)
    program, *arguments = shlex.split(command)
    assert program == "charjax"
    capsys.readouterr()
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out + printed.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the first part of each sample text."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "data_files").mkdir()
    for name, length in {"coffee.txt": 2_200, "shakespeare.txt": 12_000}.items():
        text = (ROOT / "data_files" / name).read_text(encoding="ascii")
        (folder / "data_files" / name).write_text(text[:length], encoding="ascii")
    return folder


@pytest.fixture(scope="module")
def first_output(folder):
    """What the README's first command prints; the documents use the run that it leaves behind."""
    command = commands("README.md")[0]
    assert command.startswith(SETUP)
    return run_in_shell(command, folder)


def test_the_first_command_trains_and_prints_a_sample(first_output, folder):
    assert len(first_output.split("\nOTHELLO.")[-1]) == 500 + 1
    metrics = (folder / "runs" / "shakespeare" / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(metrics.splitlines()[3])["epoch"] == 4


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if blocks(name, "python", "bash")])
@pytest.mark.usefixtures("first_output")
def test_a_document_runs_from_top_to_bottom(document, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(charjax, "data_path", (folder / "data_files").joinpath)
    names = {}
    for language, code in blocks(document, "python", "bash"):
        if language == "python":
            exec(compile(code, document, "exec"), names)
            continue
        for command in code.splitlines():
            # tests/benchmarks rehearses the benchmarks.
            if not command.startswith((SETUP, "python -m benchmarks")):
                assert run_command(command, folder, capsys), command
    for page in re.findall(r"--html (\S+)", "\n".join(commands(document))):
        assert (folder / page).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_second_command_is_the_one_that_the_gate_runs():
    (command,) = (command for command in commands("README.md") if "pytest" in command)
    pattern = re.search(r"grep -m1 -E '([^']+)' README.md", (ROOT / ".ci" / "run").read_text())[1]
    assert re.search(pattern, command)
    install = re.escape(f'{SETUP}--editable ".[dev]" && ')
    assert re.fullmatch(rf"{install}\.venv/bin/python -m pytest -n auto( --dist \w+)?", command)


def test_the_first_snippet_has_fewer_than_ten_lines_and_its_text_is_shown():
    (_, snippet), (_, text) = blocks("README.md", "python", "text")[:2]
    assert len([line for line in snippet.splitlines() if line.strip()]) < 10
    assert re.search(r"length=(\d+)", snippet)[1] == str(len(text) - 1)


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "tests/README.md"]
)
def test_files_named_in_a_document_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:benchmarks|charjax|data_files|docs|notebooks|tests)/[\w./-]+\.\w+)`", text)
    for path in named:
        assert (ROOT / path).exists(), path
    for result in re.findall(
        r"`((?:compiled|devices|generation|saving|scaling|speedrun|streaming|sweep|train_step)-[\w*-]+\.json)`", text
    ):
        assert list((ROOT / "benchmarks" / "results").glob(result)), result


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_says_how_to_install_what_its_examples_import(document):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: named_packages(lines) for name, lines in project["optional-dependencies"].items()}
    text = (ROOT / document).read_text(encoding="utf-8")
    installed = named_packages(project["dependencies"]) | {"charjax", *sys.stdlib_module_names}
    for line in re.findall(r"pip install ([^`\n]+)", text):
        installed |= set(re.findall(r"[\w-]+", line))
        installed = installed.union(*(extras[extra] for extra in re.findall(r"\[(\w+)\]", line)))
    code = "\n".join(code for _, code in blocks(document, "python", "py"))
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) <= installed


def named_packages(requirements):
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize("document", ["docs/reliability.md", "SECURITY.md"])
def test_tests_named_in_a_document_exist(document):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / document).read_text(encoding="utf-8")))
    assert named
    assert named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_architecture_shows_the_layers_that_import_linter_checks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (found for found in settings["tool"]["importlinter"]["contracts"] if found["type"] == "layers")
    layers = [set(re.findall(r"\w+", layer)) - {"_version"} for layer in contract["layers"]]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = [{name.strip("/").partition("/")[0] for name in re.findall(r"`([\w/]+)`", row)} for row in rows]
    assert shown == [layers[0] | layers[1], *layers[2:]]


@pytest.mark.slow
def test_the_first_command_reaches_its_loss(tmp_path):
    shutil.copytree(ROOT / "data_files", tmp_path / "data_files")
    out = run_in_shell(commands("README.md")[0], tmp_path)
    losses = [float(loss) for loss in re.findall(r"val (\d\.\d+)", out)]
    first, last = re.search(
        r"(\d\.\d+) nats per character after one epoch to (\d\.\d+) after four", (ROOT / "README.md").read_text()
    ).groups()
    assert len(losses) == 4
    assert [losses[0], losses[3]] == pytest.approx([float(first), float(last)], abs=0.05)


def test_the_texts_are_as_their_readme_says():
    table = (ROOT / "data_files" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.txt)` \| ([\d,]+) \|", table, re.MULTILINE)
    assert {name for name, _ in rows} == {path.name for path in (ROOT / "data_files").glob("*.txt")}
    for name, length in rows:
        assert len((ROOT / "data_files" / name).read_text(encoding="ascii")) == int(length.replace(",", ""))


def test_the_coffee_text_is_what_its_generator_writes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "data_files")
    import make_coffee

    text = (ROOT / "data_files" / "coffee.txt").read_bytes()
    assert make_coffee.text().encode("ascii") == text
    assert make_coffee.text(500, seed=2) != make_coffee.text(500, seed=3)
    assert 45_000 < len(text) < 55_000


@pytest.mark.slow
def test_a_small_model_memorizes_coffee():
    from charjax import CharLSTM, Corpus, History, fit

    corpus = Corpus.from_file(ROOT / "data_files" / "coffee.txt")
    model = CharLSTM(corpus.vocab.size, hidden_dim=128, hidden_layers=1)
    history = History()
    fit(model, corpus, batch_size=16, epochs=60, learning_rate=0.01, reporter=history)
    assert history.evaluations[-1].train_loss < 0.35
