"""Every command and snippet of the README runs as it stands there, in a copy with a shorter Shakespeare."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from charjax.runs.checkpoint import read_header

# The program where it is installed and its environment active, by itself or behind a pipe.
SHORT = re.compile(r"(?:^|(?<=\| ))charjax ")
SETUP = "python3 -m venv .venv && .venv/bin/pip install --quiet "


def blocks(root, language):
    text = (root / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(root):
    return [line for block in blocks(root, "bash") for line in block.splitlines()]


def as_here(command):
    """A command of the README with this Python's charjax in the place of the one it would install."""
    command = re.sub(rf"^{re.escape(SETUP)}\S+ && ", "", command)
    charjax = f"{shlex.quote(sys.executable)} -m charjax "
    return command.replace(".venv/bin/charjax ", charjax) if ".venv" in command else SHORT.sub(charjax, command)


def run(command, folder):
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "80"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory, request):
    """The sample texts in a folder of their own, Shakespeare cut to its first 60 thousand characters."""
    folder = tmp_path_factory.mktemp("readme")
    data = request.config.rootpath / "data_files"
    (folder / "data_files").mkdir()
    shutil.copy(data / "coffee.txt", folder / "data_files")
    (folder / "data_files" / "shakespeare.txt").write_text((data / "shakespeare.txt").read_text()[:60_000])
    return folder


def test_the_first_command_trains_and_prints_a_sample(root, copy):
    command = commands(root)[0]
    assert command.startswith(SETUP)
    out = run(as_here(command), copy)
    assert len(out.split("\nOTHELLO.")[-1]) == 500 + 1
    assert read_header(copy / "runs" / "shakespeare").progress.epoch == 4


@pytest.mark.slow
def test_the_first_command_reaches_its_loss(root, tmp_path):
    shutil.copytree(root / "data_files", tmp_path / "data_files")
    out = run(as_here(commands(root)[0]), tmp_path)
    losses = [float(loss) for loss in re.findall(r"val (\d\.\d+)", out)]
    told = [
        float(loss) for loss in re.findall(r"^\| \d \| (\d\.\d+) \|", (root / "README.md").read_text(), re.MULTILINE)
    ]
    assert losses[-1] < 1.8
    assert [losses[0], losses[1], losses[3]] == pytest.approx(told, abs=0.05)


def test_the_second_command_is_the_one_that_the_gate_runs(root):
    (command,) = (command for command in commands(root) if "pytest" in command)
    pattern = re.search(r"grep -m1 -E '([^']+)' README.md", (root / ".ci" / "run").read_text())[1]
    assert re.search(pattern, command)
    assert command.startswith(SETUP)
    assert command.endswith(" && .venv/bin/python -m pytest -n auto --dist loadfile")


def test_the_other_commands_run_one_after_another(root, copy):
    others = [command for command in commands(root) if SHORT.search(command)]
    assert len(others) == len(commands(root)) - 2
    output = [run(as_here(command), copy) for command in others]
    assert read_header(copy / "runs" / "demo").progress.epoch == 4
    assert output[2].startswith("The beans")
    assert "--- 3 of 3 ---" in output[3]
    assert "nats/char" in output[4]
    assert all(output)
    for page in ("coffee.html", "units.html"):
        assert (copy / "runs" / page).read_text().startswith("<!doctype html>")


def test_the_snippets_run_one_after_another(root, copy):
    code = "\n".join(blocks(root, "python"))
    (copy / "snippets.py").write_text(code)
    out = run(f"{shlex.quote(sys.executable)} -W error snippets.py", copy)
    assert out.splitlines()[-1].startswith("60 ")


def test_the_first_snippet_has_fewer_than_ten_lines_and_generates(root, copy):
    snippet = blocks(root, "python")[0]
    assert len([line for line in snippet.splitlines() if line.strip()]) < 10


def test_the_texts_are_as_their_readme_says(root):
    table = (root / "data_files" / "README.md").read_text()
    for name, told in re.findall(r"^\| `(\w+\.txt)` \| ([\d,]+) \|", table, re.MULTILINE):
        text = (root / "data_files" / name).read_text(encoding="ascii")
        assert len(text) == int(told.replace(",", ""))


def test_the_coffee_text_is_what_its_generator_writes(root):
    sys.path.insert(0, str(root / "data_files"))
    import make_coffee

    sys.path.pop(0)
    text = (root / "data_files" / "coffee.txt").read_bytes()
    assert make_coffee.text().encode("ascii") == text
    assert make_coffee.text(500, seed=2) != make_coffee.text(500, seed=3)
    assert 45_000 < len(text) < 55_000


@pytest.mark.slow
def test_a_small_model_learns_coffee_by_heart(root):
    from charjax import CharLSTM, Corpus, fit
    from charjax.progress.reporter import NullReporter

    class Last(NullReporter):
        def evaluation(self, evaluation, sample_text=""):
            self.train_loss = evaluation.train_loss

    corpus = Corpus.from_file(root / "data_files" / "coffee.txt")
    model = CharLSTM(corpus.vocab.size, hidden_dim=128, hidden_layers=1)
    last = Last()
    fit(model, corpus, batch_size=16, epochs=60, learning_rate=0.01, reporter=last)
    assert last.train_loss < 0.35
