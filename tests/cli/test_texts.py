"""Texts that commands take: several, in other forms, from standard input, to validate on, with unknown characters."""

import gzip
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.command_line import fails, run_in_fixture, shows
from helpers.small_run import TEXT

from charjax.cli.option_parsing import parse
from charjax.errors import UserError
from charjax.runs.metadata import RunInfo
from charjax.runs.model_file import read_info
from charjax.runs.training_text import read_training_text

HELD_OUT = "The barista drinks three cups at midnight.\n" * 9
JOINED = TEXT[:1000] + "|" + TEXT[:2000] + "|" + TEXT


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder and a compressed file to train on, and a text to validate on."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "many").mkdir()
    for number in (1, 2):
        (folder / "many" / f"{number}.txt").write_text(TEXT[: 1000 * number])
    (folder / "more.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": TEXT}).encode()))
    (folder / "held_out.txt").write_text(HELD_OUT)
    return folder


@pytest.fixture(scope="module")
def run(texts, options):
    arguments = (texts / "many", texts / "more.jsonl.gz", "--validation", texts / "held_out.txt", "--separator", "|")
    run_in_fixture("train", *arguments, "--out", texts / "run", *options)
    return texts / "run"


def measured(capsys, *argv, warns=""):
    return json.loads(shows(capsys, "eval", *argv, "--json", warns=warns))


def test_several_texts_are_trained_on_and_one_is_validated_on(run, texts, capsys):
    info = read_info(run)
    assert (info.corpus.train_characters, info.corpus.validation_characters) == (len(JOINED), len(HELD_OUT))
    assert info.corpus.paths == (str(texts / "many"), str(texts / "more.jsonl.gz"))
    assert (info.data.separator, info.data.validation) == ("|", str(texts / "held_out.txt"))
    corpus = read_training_text(info, "the run")
    assert corpus.vocab.decode(corpus.train) == JOINED
    of_run, of_text = measured(capsys, run), measured(capsys, run, texts / "held_out.txt")
    assert of_run == of_text
    assert of_run["text"] == str(texts / "held_out.txt")
    # A text is read with the separator of the run.
    (texts / "joined.txt").write_text(TEXT[:1000] + "|" + TEXT[:2000])
    assert measured(capsys, run, texts / "many")["loss"] == measured(capsys, run, texts / "joined.txt")["loss"]


def test_evaluating_a_run_takes_only_its_validation_text(run, texts, tmp_path, capsys):
    before = measured(capsys, run)["loss"]
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(HELD_OUT)
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["validation"], config["corpus"]["paths"] = str(held_out), [str(tmp_path / "gone")]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert measured(capsys, tmp_path / "run")["loss"] == before
    held_out.write_text(HELD_OUT + "!")
    assert "has changed since" in fails(capsys, "eval", tmp_path / "run")
    held_out.unlink()
    assert "held_out.txt, which" in fails(capsys, "eval", tmp_path / "run")


def test_such_a_run_resumes_with_the_same_texts_only(run, texts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    monkeypatch.chdir(texts)  # its separator and validation text are in the run
    again = ("train", "many", "more.jsonl.gz", "--out", out, "--resume")
    shows(capsys, *again, "--epochs", 2)
    assert read_info(out).data == read_info(run).data
    assert "was trained on different text (many and 1 more, " in fails(capsys, *again, "--separator", "")
    assert "was trained on different text" in fails(capsys, "train", "more.jsonl.gz", "many", "--out", out, "--resume")
    (texts / "other.txt").write_text(HELD_OUT.upper())
    message = fails(capsys, *again, "--validation", "other.txt")
    assert message.startswith(f"{out} was trained with different validation text; resume with the original")


def test_standard_input_is_recognized_when_a_run_resumes(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained.run, tmp_path / "run")
    for content, succeeds in ((TEXT, True), (TEXT.upper(), False)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
        arguments = ("train", "-", "--out", tmp_path / "run", "--resume", "--epochs", 2)
        if succeeds:
            shows(capsys, *arguments)
        else:
            assert "was trained on different text" in fails(capsys, *arguments)


def test_what_a_run_was_trained_on_may_be_out_of_reach(run, texts, tmp_path):
    info = read_info(run).to_dict()

    def read(**corpus):
        read_training_text(RunInfo.from_dict({**info, "corpus": {**info["corpus"], **corpus}}), "it")

    for paths in ([], ["-"]):
        with pytest.raises(UserError, match="it was not trained on a file"):
            read(paths=paths)
    with pytest.raises(UserError, match="nowhere, which it was trained on, does not exist"):
        read(paths=[str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="has changed since it was trained on it"):
        read(paths=[str(texts / "many" / "*.txt")])


def test_older_runs_have_one_path(run):
    info = read_info(run).to_dict()
    corpus = {"name": "a.txt", "path": "/texts/a.txt", "sha256": "0"}
    assert RunInfo.from_dict({**info, "corpus": corpus}).corpus.paths == ("/texts/a.txt",)
    assert RunInfo.from_dict({**info, "corpus": {**corpus, "path": ""}}).corpus.paths == ()


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_train_and_sweep_take_several_texts(command):
    assert parse([command, "a.txt", "b", "--out", "run"]).command.text == (Path("a.txt"), Path("b"))
    parsed = parse([command, "--out", "run", "a", "--quiet", "b", "--seed=1", "-"])
    assert (parsed.command.text, parsed.command.quiet, parsed.command.train.seed) == (
        (Path("a"), Path("b"), Path("-")),
        True,
        1,
    )
    with pytest.raises(UserError, match=f"{command} needs TEXT and --out"):
        parse([command])


def test_a_page_does_not_replace_one_of_several_texts(texts, trained, capsys):
    page = texts / "many" / "1.txt"
    assert "is the text itself" in fails(capsys, "score", trained.run, texts / "many", "--html", page)


# ---- unknown characters


@pytest.mark.parametrize("command", [["score"], ["neurons", "--chars=0"], ["eval"], ["sample", "--length=9"]])
@pytest.mark.parametrize(("on_unknown", "done"), [("skip", "skipped"), ("replace", "replaced")])
def test_unknown_characters_do_not_stop_a_text(trained, tmp_path, capsys, command, on_unknown, done):
    path, known = tmp_path / "foreign.txt", tmp_path / "known.txt"
    path.write_text("Grandmother\u2019s cafés: naïve.\n" * 3)
    known.write_text({"skip": "Grandmothers cafs: nave.\n", "replace": "Grandmother's cafes: naive.\n"}[on_unknown] * 3)
    file = ["--context-file"] if command[0] == "sample" else []
    assert fails(capsys, *command, trained.run, *file, path).endswith(", or use --on-unknown skip or replace")
    why = "the ascii vocabulary does not contain 'é' (U+00E9), 'ï' (U+00EF)"
    said = f"charjax: {path}: 9 characters were {done}, because {why}"
    out = shows(capsys, *command, trained.run, *file, path, "--on-unknown", on_unknown, warns=said)
    assert out.replace(str(path), str(known)) == shows(capsys, *command, trained.run, *file, known)


def test_unknown_characters_of_a_prompt(trained, monkeypatch, capsys):
    options = ("sample", trained.run, "--length=9", "--on-unknown=replace")
    expected = shows(capsys, "sample", trained.run, "--length=9", "--context", "cafe").removeprefix("cafe")
    said = "the text: 1 character was replaced"
    assert shows(capsys, *options, "--context", "café", warns=said) == "café" + expected
    several = shows(capsys, *options, "--context", "café", "--num-samples=2", warns=said)
    assert f"café{expected}" in several
    assert shows(capsys, *options, "--context", "café", "--beam-width=2", warns=said).startswith("café")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("café\n\xff\n".encode("latin-1"))))
    assert shows(capsys, *options, "--interactive", warns=said).count("\n") >= 2


def test_turns_and_a_prompt_cannot_both_come_from_standard_input(trained, capsys):
    message = fails(capsys, "sample", trained.run, "--interactive", "--context-file", "-")
    assert message == "--interactive reads standard input itself; pass a file as --context-file"
