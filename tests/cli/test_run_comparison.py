"""`charjax info` of several runs, `charjax plot` and `charjax report`."""

import json
import re
import shutil
import sys

import pytest
from helpers.command_line import fails, run_in_fixture, shows

from charjax.data.vocab import Vocab
from charjax.runs.logs import read_metrics, read_samples
from charjax.runs.model_file import read_info

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def two(trained, tmp_path_factory):
    """The shared run, and another of two epochs, whose name is hostile."""
    out = tmp_path_factory.mktemp("two") / HOSTILE.replace("/", "")
    options = ["--hidden-dim=4", "--batch-size=8", "--seq-len=16", "--epochs=2", "--eval-every=12"]
    run_in_fixture("train", trained.text, "-o", out, *options, "--sample-length=12", "--sample-context=The ")
    return trained.run, out


def test_info_of_two_runs_shows_what_differs(two, capsys):
    out = shows(capsys, "info", *two)
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert re.fullmatch(r"--hidden-dim +8 +4", rows["--hidden-dim"])
    assert re.fullmatch(r"--epochs +1.0 +2.0", rows["--epochs"])
    assert "--batch-size" not in rows
    assert "best" in rows
    assert "no differences" in shows(capsys, "info", two[0], two[0])


def test_info_as_json(two, capsys):
    first, second = (json.loads(line) for line in shows(capsys, "info", *two, "--json").splitlines())
    assert (first["model"]["hidden_dim"], second["model"]["hidden_dim"]) == (8, 4)
    assert first["progress"]["best_val_loss"] == read_metrics(two[0] / "metrics.jsonl")[0].val_loss
    assert first["parameters"] > second["parameters"]


def test_eval_and_score_as_json(trained, capsys):
    measured = json.loads(shows(capsys, "eval", trained.run, "--json"))
    assert measured["loss"] == pytest.approx(read_metrics(trained.run / "metrics.jsonl")[0].val_loss, rel=1e-6)
    assert measured["perplexity"] > 1
    assert (measured["text"], measured["validation_part_of"]) == (None, [str(trained.text)])
    of_text = json.loads(shows(capsys, "eval", trained.run, trained.text, "--json"))
    assert (of_text["text"], of_text["validation_part_of"], of_text["was_trained_on"]) == (str(trained.text), [], True)
    scored = json.loads(shows(capsys, "score", trained.run, trained.text, "--json", "--worst=2"))
    assert scored["characters"] == len(trained.text.read_text())
    assert len(scored["worst"]) == 2
    worst = scored["worst"][0]
    assert worst["nats"] >= scored["worst"][1]["nats"] > scored["loss"]
    line = trained.text.read_text().splitlines()[worst["line"] - 1]
    assert line[worst["column"] - 1] == worst["character"]
    assert {"name", "probability"} == worst["expected"][0].keys()
    assert "omit --paint" in fails(capsys, "score", trained.run, trained.text, "--json", "--paint=9")


@pytest.mark.parametrize("against", ["characters", "seconds", "epochs"])
def test_a_plot_has_two_curves_per_run(two, tmp_path, capsys, against):
    shows(capsys, "plot", *two, "-o", tmp_path / "new" / "folder" / "curves.svg", "--against", against)
    chart = (tmp_path / "new" / "folder" / "curves.svg").read_text()
    curves = [points.split() for points in re.findall(r'<polyline points="([^"]*)"', chart)]
    assert [len(curve) for curve in curves] == [1, 1, 4, 4]
    assert chart.count("stroke-dasharray") == 4
    assert "<script" not in chart
    # Both runs were trained on the same text: one epoch of the first ends halfway along the second.
    if against != "seconds":
        (end,) = (float(point.split(",")[0]) for point in curves[0])
        begin, last = 70, float(curves[2][-1].split(",")[0])
        assert end - begin == pytest.approx((last - begin) / 2, abs=0.2)


@pytest.mark.parametrize(("name", "start"), [("curves.png", b"\x89PNG"), ("curves.pdf", b"%PDF")])
def test_matplotlib_draws_other_formats(two, tmp_path, capsys, name, start):
    shows(capsys, "plot", *two, "--out", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_pictures_that_cannot_be_drawn(two, tmp_path, capsys, monkeypatch):
    assert "--out must end in .svg, .png or .pdf" in fails(capsys, "plot", two[0], "-o", tmp_path / "curves.gif")
    assert "is given twice" in fails(capsys, "plot", two[0], two[0], "-o", tmp_path / "curves.svg")
    assert "is not a run folder" in fails(capsys, "plot", tmp_path, "-o", tmp_path / "curves.svg")
    shutil.copytree(two[0], tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "has not been evaluated yet" in fails(capsys, "plot", tmp_path / "run", "-o", tmp_path / "curves.svg")
    (tmp_path / "run" / "curves.svg").touch()
    message = fails(capsys, "plot", tmp_path / "run", "-o", tmp_path / "run" / "curves.svg")
    assert "is a file of the run" in message
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "charjax[plots]"; or use .svg' in fails(capsys, "plot", two[0], "-o", tmp_path / "a.png")
    file = tmp_path / "run" / "config.json"
    assert fails(capsys, "plot", two[0], "-o", file / "a.svg") == f"{file / 'a.svg'}: Not a directory"


def test_a_log_of_an_earlier_version_has_its_place(two, tmp_path, capsys):
    shutil.copytree(two[1], tmp_path / "old")
    log = tmp_path / "old" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({**line, "chars_seen": None}) + "\n" for line in lines))
    shows(capsys, "plot", two[1], tmp_path / "old", "-o", tmp_path / "curves.svg")
    curves = re.findall(r'<polyline points="([^"]*)"', (tmp_path / "curves.svg").read_text())
    assert curves[0] == curves[2]


def test_a_report_is_one_page_that_loads_nothing(two, tmp_path, capsys):
    shows(capsys, "report", *two, "-o", tmp_path / "new" / "report.html", warns="written to")
    page = (tmp_path / "new" / "report.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert page.replace('xmlns="http://www.w3.org/2000/svg"', "").count("://") == 0
    for one in two:
        best = min(evaluation.val_loss for evaluation in read_metrics(one / "metrics.jsonl"))
        assert f"<td>{best:.4f}</td>" in page
    assert "<td>hidden_dim</td><td>8</td><td>4</td>" in page
    samples = read_samples(two[1] / "samples.txt")
    assert len(samples) == 4
    assert all(text.startswith("The ") and len(text) == 16 for _, text in samples)
    assert page.count("<pre>") == 1 + 4
    assert "<h2>Samples</h2>" in page
    assert page.count("<polyline") == 4


def test_a_report_of_a_run_without_samples(two, tmp_path, capsys):
    shutil.copytree(two[1], tmp_path / "run")
    (tmp_path / "run" / "samples.txt").unlink()
    shows(capsys, "report", tmp_path / "run", "--html", tmp_path / "report.html", warns="written to")
    page = (tmp_path / "report.html").read_text()
    assert "run: how it was trained" in page
    assert "<h2>Samples</h2>" not in page
    message = fails(capsys, "report", tmp_path / "run", "--html", tmp_path / "run" / "vocab.json")
    assert "is a file of the run" in message


def test_quiet_prints_nothing(trained, tmp_path, capsys):
    options = ["--hidden-dim=4", "--batch-size=8", "--seq-len=16", "--epochs=0.5", "--quiet"]
    assert shows(capsys, "train", trained.text, "-o", tmp_path / "run", *options) == ""
    assert capsys.readouterr().err == ""


def test_training_starts_from_another_run_and_takes_its_size(trained, tmp_path, capsys):
    options = ["--batch-size=8", "--seq-len=16", "--epochs=0.5", "--init-from", trained.run]
    shows(capsys, "train", trained.text, "-o", tmp_path / "run", *options, warns="knows all characters")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["hidden_dim"] == 8
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert first.train_loss < read_metrics(trained.run / "metrics.jsonl")[0].train_loss - 0.3
    shows(capsys, "train", trained.text, "-o", tmp_path / "tiny", *options, "--preset", "tiny", warns="knows all")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["model"]["hidden_dim"] == 8
    wrong = fails(capsys, "train", trained.text, "-o", tmp_path / "other", *options, "--hidden-dim=9")
    assert "was trained with --hidden-dim 8, not 9" in wrong
    message = fails(capsys, "train", trained.text, "-o", tmp_path / "run", "--resume", "--init-from", trained.run)
    assert "omit --init-from" in message


def test_a_model_that_is_trained_on_keeps_its_characters(trained, tmp_path, capsys):
    text, out = tmp_path / "new.txt", tmp_path / "run"
    text.write_text("déjà vu, " * 40)
    options = ["--batch-size=4", "--seq-len=16", "--epochs=0.5", "--sample-length=0"]
    shows(capsys, "train", text, "-o", out, *options, "--init-from", trained.run, warns="2 of 130 characters are new")
    assert read_info(out).vocab == Vocab.ascii().union(Vocab.from_text("éà"))
    shows(capsys, "train", text, "-o", out, "--resume", "--epochs=1")
    shows(capsys, "sample", out, "--context", "Zebra à", "--length=1")
    # Asked for by name, the vocabulary is the text's.
    more = ["--vocab=chars", "--init-from", trained.run]
    shows(capsys, "train", text, "-o", tmp_path / "other", *options, *more, warns="characters are new")
    assert read_info(tmp_path / "other").vocab == Vocab.from_text("déjà vu, ")
