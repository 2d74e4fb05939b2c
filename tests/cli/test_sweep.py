"""`charjax sweep`: lists of values, the table, the best model as a run, and one line for what cannot be used."""

import re

import pytest
from helpers.command_line import fails, shows

from charjax.cli.option_parsing import parse
from charjax.errors import UserError
from charjax.runs.logs import read_metrics
from charjax.runs.model_file import read_run

SHARED = ["--hidden-dim=8", "--hidden-layers=1", "--batch-size=8", "--seq-len=16", "--epochs=1"]


def error_of(*argv):
    with pytest.raises(UserError) as error:
        parse(["sweep", "text.txt", "--out", "run", *map(str, argv)])
    return str(error.value)


def test_it_prints_a_table_and_keeps_the_best_as_a_run(capsys, text, tmp_path):
    out = tmp_path / "best"
    argv = ["sweep", text, "--out", out, "--learning-rate", "1e-4", "0.03", "--seeds", 2, *SHARED]
    shown = shows(capsys, *argv)
    assert "val" in shown
    rows = [line.split() for line in shown[shown.index("learning rate") :].splitlines()]
    assert [row[0] for row in rows[1:3]] == ["0.03", "0.0001"]
    best = "best model: learning rate 0.03, dropout 0, weight decay 0.01, seed "
    assert re.search(
        rf"\n{best}[01], val loss \d\.\d+\nsaved in {out}; to generate text: charjax sample {out}\n$", shown
    )
    assert shows(capsys, "sample", out, "--length", 20, "--context", "The ").startswith("The ")
    assert "--learning-rate  " in shows(capsys, "info", out)
    info, progress = read_run(out)
    assert info.train.learning_rate == 0.03
    assert float(rows[1][5]) == pytest.approx(progress.best_val_loss, abs=1e-4)
    assert read_metrics(out / "metrics.jsonl")[-1].val_loss == progress.best_val_loss
    assert f"{out} already exists and is not empty; choose another --out" in fails(capsys, *argv)
    assert "has no checkpoints" in fails(capsys, "train", text, "--out", out, "--resume")


def test_values_of_a_config_file_and_a_preset(tmp_path):
    (tmp_path / "sweep.toml").write_text("learning_rate = [0.001, 0.002]\ndropout = 0.1\nseeds = 3\nhidden_dim = 8\n")
    argv = ["--config", str(tmp_path / "sweep.toml"), "--dropout", "0.2", "0.3", "text.txt"]
    command, given = parse(["sweep", "--out=run", *argv[:2], "text.txt", *argv[2:-1]])
    assert (command.learning_rate, command.dropout, command.seeds) == ((0.001, 0.002), (0.2, 0.3), 3)
    assert (command.model.hidden_dim, command.weight_decay) == (8, (0.01,))
    assert given == {"config", "out", "learning_rate", "dropout", "seeds", "hidden_dim"}
    for content, value in (("[]", "[]"), ("['x']", "['x']"), ("[true]", "[True]")):
        (tmp_path / "sweep.toml").write_text(f"dropout = {content}")
        assert f"dropout cannot be {value}" in error_of("--config", tmp_path / "sweep.toml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning-rate"], "--learning-rate needs a value; see charjax sweep --help"),
        (["--learning-rate", "--dropout", "0"], "--learning-rate needs a value; to pass --dropout, use"),
        (["--learning-rate", "0.1", "fast"], "--learning-rate must be numbers, not 'fast'; see charjax sweep --help"),
        (
            ["--learning-rate", "0.1", __file__],
            f"--learning-rate must be numbers, not {__file__!r}; put the text before "
            "the options; see charjax sweep --help",
        ),
        (["--learning-rate", "0.1", "-1"], "--learning-rate must be above 0 and finite, not -1.0; see charjax sweep"),
        (["--dropout", "0", "1"], "--dropout must be at least 0 and below 1, not 1.0"),
        (["--seeds", "0"], "--seeds must be a whole number of at least 1, not 0"),
        (["--sample-length", "9"], "unknown option --sample-length"),
        (["--resume"], "unknown option --resume"),
        (["--checkpoint-every", "9"], "unknown option --checkpoint-every"),
    ],
)
def test_command_lines_that_cannot_be_used(argv, message):
    assert message in error_of(*argv)


def test_what_cannot_be_trained(capsys, text, tmp_path):
    def message(*argv):
        error = fails(capsys, "sweep", text, "--out", tmp_path / "run", *SHARED, *argv)
        assert not (tmp_path / "run").exists()
        return error

    assert "dropout contains 0.1 more than once" in message("--dropout", "0.1", "0.2", "0.1")
    assert "the largest that fit: " in message("--batch-size=4000")
    text.unlink()
    assert "coffee.txt does not exist; use a text file" in message()
