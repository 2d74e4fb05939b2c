"""Parsing of the command line: every mistake is one line with what to do, and the help explains every option."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import fails

from charjax._version import __version__
from charjax.analysis.features import FEATURES
from charjax.cli.arguments import COMMANDS
from charjax.cli.commands import score
from charjax.cli.main import main
from charjax.cli.option_parsing import parse
from charjax.config import DataConfig, ModelConfig, SampleConfig, TrainConfig
from charjax.errors import UserError
from charjax.ops.lstm import api


def error_of(*argv):
    """Parses a command line that must be refused -> the message."""
    with pytest.raises(UserError) as error:
        parse([str(argument) for argument in argv])
    return str(error.value)


def train_error(*argv):
    return error_of("train", "text.txt", "--out", "run", *argv)


def help_of(capsys, monkeypatch, *command):
    """Returns the help of a command as one line."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


# ---- help


def test_help_is_quick_because_it_imports_no_jax():
    with_lists = ["info", "plot", "report", "sweep"]
    others = [[], *([name] for name in COMMANDS if name not in with_lists)]
    code = f"""
import contextlib, sys
from charjax.cli.main import main
for command in [*{others}, *([name] for name in {with_lists})]:
    if command == ["info"]:
        assert "typeguard" not in sys.modules  # tyro needs it for lists of values only
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
print(sorted({{"jax", "flax", "numpy", "orbax"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    assert done.stdout.count("usage: charjax") == 1 + len(COMMANDS)


@pytest.mark.parametrize("configs", [{"train": (DataConfig, ModelConfig, TrainConfig)}, {"sample": (SampleConfig,)}])
def test_help_explains_every_option(capsys, monkeypatch, configs):
    ((command, kinds),) = configs.items()
    shown = help_of(capsys, monkeypatch, command)
    fields = [field for kind in kinds for field in dataclasses.fields(kind)]
    assert all(f"--{field.name.replace('_', '-')} " in shown for field in fields)
    assert shown.count("(default:") + shown.count("(required)") >= len(fields)
    assert ">>>" not in shown


def test_help_names_the_version_implementations_and_features(capsys, monkeypatch):
    assert "charjax --version" in help_of(capsys, monkeypatch)
    shown = help_of(capsys, monkeypatch, "train")
    explained = shown[shown.index("LSTM implementation;") :].split("(default")[0]
    assert all(name in explained for name in api.IMPLEMENTATIONS)
    shown = help_of(capsys, monkeypatch, "neurons")
    assert all(feature.name in shown for feature in FEATURES)


def test_help_flows_and_ends_with_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        lines = capsys.readouterr().out.rstrip().splitlines()
        parsed = parse(shlex.split(lines[-1].removeprefix("example: charjax ")))
        assert isinstance(parsed.command, COMMANDS[command])
        # A line that ends early is the last of its option, or what follows would not have fitted.
        explained = [line.strip("│ ") for line in lines if line.startswith("│") and "──" not in line]
        for line, following in itertools.pairwise(explained):
            last = line.endswith((")", ".")) or line.startswith("-") or following.startswith("-")
            assert last or len(line.split("  ")[-1]) + len(following.split()[0]) > 48, (line, following)


def test_help_of_score_states_the_default_number_of_streams(capsys, monkeypatch):
    most = f"{score.MOST_WORK_IN_ONE_PASS:.0e}".replace("e+", "e")
    expected = f"By default 1 if characters x parameters is at most {most} (half a minute), otherwise {score.STREAMS}."
    assert expected in help_of(capsys, monkeypatch, "score")


def test_the_installed_script_prints_the_version():
    script = Path(sys.executable).parent / "charjax"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"charjax {__version__}\n", "")


def test_bash_completes_commands_options_choices_and_paths(tmp_path, capsys):
    (tmp_path / "completion").write_text(completion(capsys, "bash"))
    (tmp_path / "runs" / "my notes").mkdir(parents=True)
    (tmp_path / "coffee.txt").write_text("")
    expected = {
        "sam\t runs/my\t --te\t 0.7": "sample|runs/my notes/|--temperature|0.7",
        "train cof\t -o runs/m\t --dtype=fl\t": "train|coffee.txt|-o|runs/my notes/|--dtype=float32",
        "import --vocab=cof\t": "import|--vocab=coffee.txt",
        "train --vocab by\t --epochs co\t": "train|--vocab|bytes|--epochs|co",
        "--ver\t": "--version",
    }
    show = "charjax() { local IFS='|'; echo \"<$*>\"; }\nsource completion\n"
    typed = show + "".join(f"charjax {line}\n" for line in expected) + "exit\n"
    controller, end = pty.openpty()
    bash = ["bash", "--norc", "--noprofile", "-i"]
    with subprocess.Popen(bash, cwd=tmp_path, stdin=end, stdout=end, stderr=end, start_new_session=True):
        os.write(controller, typed.encode())
        os.close(end)
        shown = b"".join(until_closed(controller)).decode()
    os.close(controller)
    assert re.findall(r"<(.+)>\r\n", shown) == list(expected.values()), shown


def completion(capsys, shell):
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    return capsys.readouterr().out


def until_closed(terminal):
    """Yields what a terminal shows until the last program that uses it ends."""
    with contextlib.suppress(OSError):
        while shown := os.read(terminal, 10_000):
            yield shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_lists_all_options_and_no_help_text(capsys, shell):
    script = completion(capsys, shell)
    for kind in (DataConfig, ModelConfig, TrainConfig, SampleConfig):
        names = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
        assert [name for name in names if not re.search(rf"[ (-]{name}[ ')]", script)] == []
    assert " ".join(COMMANDS) in script
    assert "likely character" not in script
    assert error_of("--print-completion", "fish").startswith("--print-completion must be bash or zsh or tcsh")


# ---- commands, options and values


def test_short_forms():
    parsed = parse(["train", "text.txt", "-o", "run", "--lr=0.5"])
    assert parsed.command.out == Path("run")
    assert parsed.command.train.learning_rate == 0.5
    assert parsed.given == {"out", "learning_rate"}
    assert parse(["sweep", "t", "-o", "run", "--lr", "1", "2"]).command.learning_rate == (1.0, 2.0)
    assert "--learning-rate must be a number, not 'x'" in train_error("--lr", "x")


def test_the_configuration_of_a_run_is_a_config(trained, tmp_path):
    config = trained.run / "config.json"
    parsed = parse(["train", "text.txt", "--out", "run", "--config", str(config), "--epochs", "7"])
    saved = json.loads(config.read_text())
    for name, value in [*saved["model"].items(), *saved["train"].items()]:
        part = parsed.command.model if name in saved["model"] else parsed.command.train
        assert getattr(part, name) == (7 if name == "epochs" else value)
    # Of a stranger's run, neither the folder to write to nor the code to import.
    saved["train"] |= {"tracker": "antigravity:fly_to", "out": "elsewhere", "distributed": True}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    command = parse(["train", "text.txt", "--out", "run", "--config", str(tmp_path / "config.json")]).command
    assert (command.tracker, str(command.out), command.distributed) == (None, "run", False)
    # A sweep has no samples.
    parse(["sweep", "text.txt", "--out", "run", "--config", str(config)])
    for content in ("[]", "{", '{"model": {}}', "[" * 100_000):
        (tmp_path / "config.json").write_text(content)
        assert "is not the config.json of a run" in train_error("--config", tmp_path / "config.json")


def test_unknown_names_suggest_the_nearest():
    assert error_of("trian", "x") == "unknown command 'trian', did you mean train?; see charjax --help"
    assert "unknown option --hiden-dim, did you mean --hidden-dim?" in train_error("--hiden-dim", "3")
    assert "unknown option --temprature, did you mean --temperature?" in error_of("sample", "r", "--temprature=1")


def test_missing_arguments_are_named():
    assert error_of() == f"pass a command, one of {', '.join(COMMANDS)}; see charjax --help"
    assert error_of("train") == "train needs TEXT and --out; see charjax train --help"
    assert error_of("train", "x") == "train needs --out; see charjax train --help"
    assert error_of("score", "run") == "score needs TEXT; see charjax score --help"
    assert error_of("info") == "info needs RUN; see charjax info --help"
    assert "surplus" in error_of("eval", "run", "text", "surplus")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out"], "--out needs a value; see charjax train --help"),
        (["--out", ""], "--out needs a non-empty value; see charjax train --help"),
        (["--out="], "--out needs a non-empty value"),
        (["--config", "--out", "x"], "--config needs a value; to pass --out, use --config=--out;"),
        (["--config"], "--config needs a value;"),
        (["--sample-context", "--x"], "to pass --x, use --sample-context=--x;"),
        (["--hidden-dim", "--resume"], "--hidden-dim needs a value"),
        (
            ["--", "-x.txt"],
            "unknown option --; put ./ before a path that begins with a dash; see charjax train --help",
        ),
        (["-out", "x"], "unknown option -out, did you mean --out?; see charjax train --help"),
        (["--schedule", "linear"], "see charjax train --help"),
    ],
)
def test_values_that_are_missing(argv, message):
    assert message in train_error(*argv)


def test_a_file_whose_name_begins_with_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x.txt").touch()
    message = "unknown option -x.txt; put ./ before a path that begins with a dash; see charjax train --help"
    assert error_of("train", "-x.txt", "--out", "run") == message


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5", "nan"])
def test_train_frac_out_of_range(value):
    assert train_error("--train-frac", value).startswith("--train-frac must be between 0 and 1")


@pytest.mark.parametrize("flag", ["--hidden-dim", "--hidden-layers", "--batch-size", "--seq-len"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_sizes_that_are_not_positive(flag, value):
    expected = "from 1 to 1000" if flag == "--hidden-layers" else "of at least 1"
    assert f"{flag} must be a whole number {expected}, not {value}" in train_error(flag, value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "ten"], "--epochs must be a number, not 'ten'; see charjax train --help"),
        (["--eval-every=1.5"], "--eval-every must be a whole number, not '1.5'; see charjax train --help"),
        (["--learning-rate", "fast"], "--learning-rate must be a number, not 'fast'; see charjax train --help"),
        (["--learning-rate", "-.5"], "--learning-rate must be above 0 and finite, not -0.5; see charjax train --help"),
    ],
)
def test_numbers_that_are_not(argv, message):
    assert train_error(*argv) == message


def test_a_preset_that_does_not_exist():
    message = "--preset must be tiny, small, medium or large, not 'huge'; see charjax train --help"
    assert train_error("--preset", "huge") == message
    assert train_error("--preset=huge") == message


def test_none_stands_for_the_default():
    assert parse(["train", "x", "--out", "y", "--eval-every", "None"]).command.train.eval_every is None
    assert "--epochs" in train_error("--epochs", "None")


def test_a_choice_that_does_not_exist():
    message = train_error("--schedule", "linear")
    assert "'linear'" in message
    assert "cosine" in message


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_an_error_message_is_extracted_from_tyros_frame(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    rule = "--epochs must be above 0 and finite, not 0.0; see charjax train --help"
    assert train_error("--epochs", "0") == rule


def test_the_names_of_given_options_are_kept():
    parsed = parse(["train", "x", "--out=y", "--hidden-dim", "8", "--resume"])
    assert parsed.given == {"out", "hidden_dim", "resume"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--coordinator=x:1", "--coordinator needs --distributed"),
        ("--distributed --num-processes=2", "--num-processes and --process-id go together; pass all three or none"),
        ("--distributed --coordinator=x --num-processes=2 --process-id=0", "--coordinator must be HOST:PORT, not 'x'"),
        (
            "--distributed --coordinator=x:1 --num-processes=2 --process-id=2",
            "--process-id must be below --num-processes 2, not 2",
        ),
        (
            "--distributed --coordinator=x:1 --num-processes=0 --process-id=0",
            "--num-processes must be a whole number of at least 1, not 0",
        ),
    ],
)
def test_options_of_distributed_training(argv, message):
    assert message in train_error(*argv.split())


# ---- config files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hiden_dim = 3", "unknown option 'hiden_dim', did you mean hidden_dim?"),
        ("hidden_dim = ", "is not valid TOML"),
        ("hidden_dim = [3]", "hidden_dim cannot be [3]"),
        ("resume = 1", "resume cannot be 1"),
        ("hidden_dim = true", "hidden_dim cannot be True"),
        ("config = 'x'", "config cannot be set in a config file; remove it"),
        ("#" * 1_000_001, "is too large for an options file"),
        ("learning_rate = 'x'", "learning_rate cannot be 'x'"),
        ("hidden_dim = '8'", "hidden_dim cannot be '8'"),
        ("eval_every = 8.5", "eval_every cannot be 8.5"),
        ("sample_context = 5", "sample_context cannot be 5"),
        ("[data]\nseed = 1\n[train]\nseed = 2", "seed is given twice"),
        ("batch_size = 0", "--batch-size must be a whole number of at least 1, not 0"),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "run.toml").write_text(content)
    assert message in train_error("--config", tmp_path / "run.toml")


def test_a_config_file_that_does_not_exist():
    assert "--config nowhere.toml cannot be read" in train_error("--config", "nowhere.toml")


def test_the_command_line_overrides_a_config_file(tmp_path):
    (tmp_path / "run.toml").write_text(
        "\ufeff"  # a byte order mark, which editors on Windows write
        "hidden-dim = 6\nlearning_rate = 0.02\nresume = false\n"
        "[data]\nvocab = 'bytes'\n[train]\nsample_context = '--odd'\n"
    )
    parsed = parse(["train", "x", "--out=y", "--config", str(tmp_path / "run.toml"), "--hidden-dim", "7"])
    command = parsed.command
    assert (command.model.hidden_dim, command.train.learning_rate, command.data.vocab) == (7, 0.02, "bytes")
    assert (command.train.sample_context, command.resume) == ("--odd", False)
    assert {"hidden_dim", "learning_rate", "vocab", "sample_context"} <= parsed.given


# ---- all of it on the command line


def test_a_name_with_a_line_break_is_reported_on_one_line(capsys, tmp_path):
    out = ["--out", tmp_path / "run"]
    assert "a\\nb does not exist" in fails(capsys, "train", tmp_path / "a\nb", *out)
    assert "unknown option --a\\nb" in fails(capsys, "train", "x", *out, "--a\nb")


def test_the_current_directory_was_deleted(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert fails(capsys, "info", "run").startswith("the current directory was deleted")
