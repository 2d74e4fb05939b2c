"""The command line: what each command prints, and one line with exit code 2 for every mistake."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.small_run import TEXT

from charjax import load_model
from charjax.cli import main as cli
from charjax.runs.checkpoint import read_header

SMALL = "--hidden-dim 8 --hidden-layers 1 --batch-size 8 --seq-len 16 --epochs 1 --sample-length 10".split()  # noqa: SIM905


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "coffee.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "coffee.txt").write_text(TEXT)
    assert cli.main(["train", str(folder / "coffee.txt"), "--out", str(folder / "run"), *SMALL]) == 0
    return folder / "run"


def fails(capsys, *argv):
    """Runs a command that must fail as the user's mistake: -> its one line."""
    capsys.readouterr()
    assert cli.main([str(arg) for arg in argv]) == 2
    told = ("charjax: vocabulary", "charjax: LSTM implementation")
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(told)]
    assert len(errors) == 1, errors
    assert errors[0].startswith("charjax: error: ")
    return errors[0].removeprefix("charjax: error: ")


def train_fails(capsys, text, *argv):
    """The same for a training, which must leave nothing behind."""
    out = text.parent / "run"
    message = fails(capsys, "train", text, "--out", out, *SMALL, *argv)
    assert not out.exists()
    return message


# ---- what the commands print


def test_train_tells_what_it_does_and_how_to_go_on(text, tmp_path, capsys):
    assert cli.main(["train", str(text), "--out", str(tmp_path / "run"), *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "val" in out
    assert "perplexity" in out
    assert out.endswith(f"saved in {tmp_path}/run; to generate text: charjax sample {tmp_path}/run\n")
    assert "vocabulary: ascii (128 characters), because" in err


def test_sample_prints_the_context_and_what_follows(finished, capsys):
    model, params, vocab = load_model(finished)
    from charjax import generate_text

    assert cli.main(["sample", str(finished), "--context", "The ", "--length", "70", "--seed", "3"]) == 0
    (expected,) = generate_text(model, params, vocab, "The ", seed=3, length=70)
    assert capsys.readouterr().out == "The " + expected + "\n"


def test_sample_prints_several_texts(finished, capsys):
    assert cli.main(["sample", str(finished), "--num-samples", "2", "--length", "5", "--temperature", "0"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "--- 1 of 2 ---"
    assert "--- 2 of 2 ---" in lines


def test_eval_measures_the_validation_part(finished, capsys):
    assert cli.main(["eval", str(finished)]) == 0
    out = capsys.readouterr().out
    assert f"loss        {read_header(finished).progress.best_val_loss:.4f} nats/char" in out
    assert "perplexity" in out
    assert "bits/char" in out


def test_eval_measures_any_text_and_says_where_it_was_trained_on_it(finished, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("Another text.")
    assert cli.main(["eval", str(finished), str(tmp_path / "other.txt")]) == 0
    assert "characters  13\n" in capsys.readouterr().out
    assert cli.main(["eval", str(finished), str(finished.parent / "coffee.txt")]) == 0
    assert "most of which it was trained on" in capsys.readouterr().out


def test_info_shows_the_run(finished, capsys):
    assert cli.main(["info", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "1 x 8 LSTM" in out
    assert "coffee.txt" in out
    assert "--learning-rate" in out


def test_info_counts_the_parameters(finished, capsys):
    import jax

    _, params, _ = load_model(finished)
    cli.main(["info", str(finished)])
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters" in capsys.readouterr().out


def test_a_config_file_gives_options_and_the_command_line_comes_first(text, tmp_path):
    (tmp_path / "run.toml").write_text(
        "hidden-dim = 6\nlearning_rate = 0.02\n[data]\nvocab = 'bytes'\n[train]\nepochs = 1\nbatch_size = 8\n"
        "seq_len = 16\nsample_context = '--odd'\n"
    )
    config = ["--config", str(tmp_path / "run.toml"), "--hidden-layers", "1", "--hidden-dim", "7"]
    assert cli.main(["train", str(text), "--out", str(tmp_path / "run"), *config]) == 0
    info = read_header(tmp_path / "run").info
    assert (info.model.hidden_dim, info.train.learning_rate, info.vocab.kind) == (7, 0.02, "bytes")
    assert info.train.sample_context == "--odd"


def test_resume_keeps_the_options_of_the_run(text, tmp_path):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["train", str(text), *out, *SMALL, "--learning-rate", "0.02"]) == 0
    assert cli.main(["train", str(text), *out, "--resume", "--epochs", "2"]) == 0
    info = read_header(tmp_path / "run").info
    assert (info.train.learning_rate, info.train.epochs, info.model.hidden_dim) == (0.02, 2, 8)


def test_resuming_for_fewer_epochs_than_there_were(text, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["train", str(text), *out, *SMALL, "--epochs", "2"]) == 0
    assert "which is 2 epochs, more than --epochs 1;" in fails(capsys, "train", text, *out, "--resume", "--epochs", "1")
    assert read_header(tmp_path / "run").info.train.epochs == 2


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["eval"], ["info"]])
def test_help_is_quick_because_it_imports_no_jax(command):
    code = (
        "import sys; from charjax.cli.main import main\ntry: main(sys.argv[1:])\nfinally: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith("False\n")


def test_help_explains_every_flag(capsys):
    import dataclasses

    from charjax.config import DataConfig, ModelConfig, SampleConfig, TrainConfig

    for command, configs in {"train": (DataConfig, ModelConfig, TrainConfig), "sample": (SampleConfig,)}.items():
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        out = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for config in configs:
            for field in dataclasses.fields(config):
                assert f"--{field.name.replace('_', '-')}" in out
        assert out.count("(default:") + out.count("(required)") >= sum(len(dataclasses.fields(c)) for c in configs)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == "charjax 0.1.0\n"


def test_a_reader_that_has_enough_is_no_error(finished):
    command = f"{sys.executable} -m charjax sample {finished} --length 3000 | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout) == 10
    assert done.stderr == ""


# ---- bad input, row by row


def test_missing_file(capsys, tmp_path):
    assert "nowhere.txt does not exist; give a text file" in train_fails(capsys, tmp_path / "nowhere.txt")


def test_folder_in_place_of_a_file(capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "folder is a folder; give a text file" in train_fails(capsys, tmp_path / "folder")


def test_empty_file(capsys, text):
    text.write_text("")
    assert "coffee.txt is empty" in train_fails(capsys, text)


def test_one_character_file(capsys, text):
    text.write_text("x")
    assert "has 1 character; a text needs at least 4" in train_fails(capsys, text)


def test_text_shorter_than_one_window_says_what_would_fit(capsys, text):
    text.write_text("x" * 100)
    assert "the largest that fit: --batch-size 5 or --seq-len 11" in train_fails(capsys, text)
    for fitting in (["--batch-size", "5"], ["--seq-len", "11"]):
        shutil.rmtree(text.parent / "run", ignore_errors=True)
        options = [*SMALL, *fitting]
        # 8 test devices cannot share 5 streams out: one device stands in for the user's machine.
        done = subprocess.run(
            [sys.executable, "-m", "charjax", "train", str(text), "--out", str(text.parent / "run"), *options],
            env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_non_ascii_under_ascii_names_character_line_and_column(capsys, text):
    text.write_text("plain\nso café\n" * 50)
    message = train_fails(capsys, text, "--vocab", "ascii")
    assert "line 2, column 7: 'é' (U+00E9)" in message
    assert "--vocab auto, chars or bytes" in message


def test_invalid_utf8_names_the_offset_and_suggests_bytes(capsys, text):
    text.write_bytes(b"abc\xff" * 300)
    message = train_fails(capsys, text, "--vocab", "chars")
    assert "byte 0xff at offset 3" in message
    assert "--vocab bytes" in message


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5", "nan"])
def test_train_frac_outside_its_bounds(capsys, text, value):
    assert train_fails(capsys, text, "--train-frac", value).startswith("--train-frac must be between 0 and 1")


@pytest.mark.parametrize("flag", ["--hidden-dim", "--hidden-layers", "--batch-size", "--seq-len", "--epochs"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_sizes_that_are_not_positive(capsys, text, flag, value):
    expected = "from 1 to 1000" if flag == "--hidden-layers" else "of at least 1"
    assert f"{flag} must be a whole number {expected}, not {value}" in train_fails(capsys, text, flag, value)


def test_a_value_of_the_wrong_type(capsys, text):
    assert "--epochs: invalid literal for int() with base 10: 'ten'" in train_fails(capsys, text, "--epochs", "ten")


def test_a_choice_that_is_none(capsys, text):
    message = train_fails(capsys, text, "--schedule", "linear")
    assert "'linear'" in message
    assert "cosine" in message


def test_unknown_flag_suggests_the_nearest(capsys, text):
    assert "unknown option --hiden-dim, did you mean --hidden-dim?" in train_fails(capsys, text, "--hiden-dim", "3")
    assert "unknown option --temprature, did you mean --temperature?" in fails(capsys, "sample", "r", "--temprature=1")


def test_unknown_command_suggests_the_nearest(capsys):
    assert "unknown command 'trian', did you mean train?" in fails(capsys, "trian", "x")
    assert "train, sample, eval, score, info, neurons" in fails(capsys)


def test_missing_arguments(capsys, text):
    assert "--out" in fails(capsys, "train", text)
    assert "PATH" in fails(capsys, "sample")
    assert "--out" in fails(capsys, "train", text, "--out")
    assert "surplus" in fails(capsys, "info", "run", "surplus")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out"], "--out needs a value; see charjax train --help"),
        (["--out", ""], "--out needs a value, not an empty one; see charjax train --help"),
        (["--out="], "--out needs a value, not an empty one"),
        (["--config", "--out", "x"], "--config needs a value; if --out is meant, write --config=--out;"),
        (["--config"], "--config needs a value;"),
        (["--sample-context", "--x"], "if --x is meant, write --sample-context=--x;"),
        (["--hidden-dim", "--resume"], "--hidden-dim needs a value"),
        (["-out", "x"], "unknown option -out, did you mean --out?; see charjax train --help"),
        (["--schedule", "linear"], "see charjax train --help"),
    ],
)
def test_values_that_are_missing(capsys, text, argv, message):
    assert message in fails(capsys, "train", text, *argv)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_complaint_is_read_out_of_its_frame(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "charjax", "train", "x", "--out", "y", "--epochs", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rule = "--epochs must be a whole number of at least 1, not 0; see charjax train --help"
    assert (done.returncode, done.stderr) == (2, f"charjax: error: {rule}\n")


def test_negative_numbers_are_values(capsys, text):
    assert "--learning-rate must be above 0" in train_fails(capsys, text, "--learning-rate", "-.5")


def test_a_name_of_two_lines_is_told_in_one(capsys, text, tmp_path):
    assert "a\\nb does not exist" in train_fails(capsys, tmp_path / "a\nb")
    assert "unknown option --a\\nb" in train_fails(capsys, text, "--a\nb")


def test_a_pipe_or_device_is_no_text(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a pipe or device; give a text file" in train_fails(capsys, tmp_path / "pipe")
    assert "/dev/zero is a pipe or device" in fails(capsys, "train", "/dev/zero", "--out", tmp_path / "run")


def test_the_current_directory_is_gone(text, tmp_path):
    command = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && charjax info run"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("charjax: error: the current directory was deleted")


def test_help_names_the_implementations_and_the_version(capsys):
    from charjax.ops.lstm import api

    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "charjax --version" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    explained = out[out.index("How the LSTM is computed") :]
    assert all(name in explained[: explained.index("(default")] for name in api.IMPLEMENTATIONS)


def test_unknown_implementation(capsys, text):
    assert "'cuda'" in train_fails(capsys, text, "--implementation", "cuda")


@pytest.mark.parametrize("name", ["cudnn", "mosaic_gpu", "mosaic_tpu"])
def test_an_implementation_for_other_devices(capsys, text, name):
    for dtype in ("float32", "bfloat16"):
        error = train_fails(capsys, text, "--implementation", name, "--dtype", dtype)
        assert f"'{name}'" in error
        assert "'cpu'" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hiden_dim = 3", "unknown option 'hiden_dim', did you mean hidden_dim?"),
        ("hidden_dim = ", "is not TOML"),
        ("hidden_dim = [3]", "hidden_dim cannot be [3]"),
        ("resume = 1", "resume cannot be 1"),
        ("hidden_dim = true", "hidden_dim cannot be True"),
        ("config = 'x'", "unknown option 'config'"),
        ("learning_rate = 'x'", "learning_rate cannot be 'x'"),
        ("hidden_dim = '8'", "hidden_dim cannot be '8'"),
        ("eval_every = 8.5", "--eval-every"),
        ("sample_context = 5", "sample_context cannot be 5"),
        ("[data]\nseed = 1\n[train]\nseed = 2", "seed is given twice"),
    ],
)
def test_config_files_that_cannot_be_used(capsys, text, content, message):
    (text.parent / "run.toml").write_text(content)
    assert message in train_fails(capsys, text, "--config", text.parent / "run.toml")


def test_a_config_file_that_is_not_there(capsys, text):
    assert "--config nowhere.toml cannot be read" in train_fails(capsys, text, "--config", "nowhere.toml")


def test_a_run_folder_that_exists(capsys, finished, text):
    before = sorted(finished.rglob("*"))
    message = fails(capsys, "train", text, "--out", finished, *SMALL)
    assert "already exists; add --resume to continue its run, or choose another --out" in message
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize("command", ["sample", "eval", "info"])
def test_a_run_folder_that_is_no_run(capsys, tmp_path, command):
    assert "is not a run folder" in fails(capsys, command, tmp_path)
    assert "does not exist" in fails(capsys, command, tmp_path / "nowhere")


def test_resuming_what_is_no_run(capsys, text, tmp_path):
    assert "does not exist" in train_fails(capsys, text, "--resume")
    (tmp_path / "folder").mkdir()
    assert "is not a run folder" in fails(capsys, "train", text, "--out", tmp_path / "folder", "--resume")


def test_resuming_with_another_architecture(capsys, finished):
    text = finished.parent / "coffee.txt"
    message = fails(capsys, "train", text, "--out", finished, "--resume", "--hidden-dim", "9")
    assert "was trained with --hidden-dim 8, not 9; leave --hidden-dim out" in message


def test_resuming_with_another_text(capsys, finished, text):
    text.write_text("é" + TEXT)
    message = fails(capsys, "train", text, "--out", finished, "--resume")
    assert "was trained on another text (coffee.txt, 3,360 characters)" in message


def test_context_outside_the_vocabulary(capsys, finished):
    message = fails(capsys, "sample", finished, "--context", "naïve café")
    assert "'é' (U+00E9), 'ï' (U+00EF)" in message
    assert "lacks" in message


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--temperature", "-0.5", "temperature must be at least 0"),
        ("--temperature", "nan", "temperature must be at least 0"),
        ("--top-p", "0", "--top-p must be above 0 and at most 1"),
        ("--top-p", "1.2", "--top-p must be above 0 and at most 1"),
        ("--top-k", "0", "--top-k must be a whole number of at least 1"),
        ("--length", "-1", "length must be"),
        ("--num-samples", "0", "--num-samples must be"),
        ("--seed", "-1", "seed must be"),
    ],
)
def test_sampling_settings_out_of_range(capsys, finished, flag, value, rule):
    assert rule in fails(capsys, "sample", finished, flag, value)


def test_a_truncated_checkpoint_falls_back_and_says_so(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    latest = tmp_path / "run" / "checkpoints" / str(steps[-1])
    victim = latest / "params" / "head.kernel" / "c" / "0" / "0"
    os.truncate(victim, victim.stat().st_size // 2)
    done = subprocess.run(
        [sys.executable, "-m", "charjax", "info", str(tmp_path / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert f"checkpoint {steps[-1]} of " in line
    assert line.endswith(f"using checkpoint {steps[0]} instead")


def train_until_the_disk_is_full(text, out, *, after):
    """Trains in a process whose files may not grow beyond 20 kB after some checkpoints, as if the disk were full."""
    options = [*SMALL, "--hidden-dim=64", "--hidden-layers=2", "--checkpoint-every=1", "--epochs=50"]
    command = [sys.executable, "-m", "charjax", "train", str(text), "--out", str(out), *options]
    # Without the compilation cache, whose files would be cut off just so.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while len(list(out.glob("checkpoints/*/charjax_seal.json"))) < after:
            assert process.poll() is None
            time.sleep(0.01)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in errors
    *told, message = errors.splitlines()
    assert all(line.startswith(("charjax: vocabulary", "charjax: LSTM implementation")) for line in told)
    return message


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(text, tmp_path):
    message = train_until_the_disk_is_full(text, tmp_path / "run", after=0)
    assert "cannot be written (File too large); nothing was kept: free some space" in message
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_keeps_the_checkpoints_before(text, tmp_path):
    message = train_until_the_disk_is_full(text, tmp_path / "run", after=2)
    assert "cannot be written (File too large); earlier checkpoints are kept: free some space" in message
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    more = ["--checkpoint-every", "1000", "--resume"]
    assert cli.main(["train", str(text), "--out", str(tmp_path / "run"), *more]) == 0


def test_no_write_permission(capsys, text, tmp_path):
    """A path that cannot be made, also by root: a folder inside a file."""
    (tmp_path / "file").write_text("x")
    message = fails(capsys, "train", text, "--out", tmp_path / "file" / "run", *SMALL)
    assert "cannot be written" in message
    assert "choose another --out" in message


def test_a_folder_without_write_permission():
    """Root may write everywhere, so as root the second training runs as somebody else, with all modules loaded."""
    code = """
import importlib, os, pkgutil, sys
from charjax import cli, commands
for module in pkgutil.iter_modules(commands.__path__, "charjax.cli.commands."):
    importlib.import_module(module.name)
folder, *options = sys.argv[1:]
assert cli.main(["train", folder + "/coffee.txt", "--out", folder + "/run", *options]) == 0
if os.geteuid() == 0:
    os.seteuid(65534)
sys.exit(cli.main(["train", folder + "/coffee.txt", "--out", folder + "/closed/run", *options]))
"""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    # Not pytest's own folder, which is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "coffee.txt").write_text(TEXT)
        (Path(folder) / "closed").mkdir(mode=0o555)
        command = [sys.executable, "-c", code, folder, *SMALL]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert (
        "closed/run cannot be written (Permission denied); nothing was kept: change its permissions, or choose"
        in done.stderr.splitlines()[-1]
    )
    assert "Traceback" not in done.stderr


def test_what_may_not_be_read():
    """Root may read everything, so as root the commands run as somebody else, with all modules loaded."""
    code = """
import importlib, os, pkgutil, sys
from charjax import cli, commands
for module in pkgutil.iter_modules(commands.__path__, "charjax.cli.commands."):
    importlib.import_module(module.name)
folder, *options = sys.argv[1:]
train = ["train", folder + "/coffee.txt", "--out", folder + "/run", *options]
assert cli.main(train) == 0
run, copy = folder + "/run", folder + "/copy"
os.system(f"cp -r {run} {copy}")
latest = max((n for n in os.listdir(copy + "/checkpoints") if n.isdigit()), key=int)
os.chmod(f"{copy}/checkpoints/{latest}/charjax_seal.json", 0)
os.chmod(run + "/checkpoints", 0)
os.chmod(folder + "/closed.txt", 0)
os.chmod(folder + "/closed", 0)
if os.geteuid() == 0:
    os.seteuid(65534)
for argv in (["info", run], ["info", copy], ["info", folder + "/closed"], ["eval", copy, folder + "/closed.txt"],
             ["train", folder + "/closed.txt", "--out", folder + "/other", *options]):
    print("code", cli.main(argv), file=sys.stderr)
"""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "coffee.txt").write_text(TEXT)
        (Path(folder) / "closed.txt").write_text(TEXT)
        (Path(folder) / "closed").mkdir()
        command = [sys.executable, "-c", code, folder, *SMALL]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    denied = "Permission denied; check its permissions\ncode 2\n"
    assert f"charjax: error: {folder}/run/checkpoints: {denied}" in done.stderr
    assert "charjax_seal.json: Permission denied); using checkpoint 0 instead\ncode 0\n" in done.stderr
    assert f"charjax: error: {folder}/closed: {denied}" in done.stderr
    assert done.stderr.count(f"charjax: error: {folder}/closed.txt: {denied}") == 2
    assert "Traceback" not in done.stderr


def test_eval_where_the_text_is_gone_or_changed(capsys, finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path / "copy")
    original = finished.parent / "coffee.txt"
    original.rename(original.with_name("away.txt"))
    assert "is not there; name a TEXT" in fails(capsys, "eval", finished)
    original.write_text("changed")
    assert "has changed since" in fails(capsys, "eval", finished)
    original.with_name("away.txt").rename(original)


def test_eval_of_what_is_no_text_for_it(capsys, finished, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    assert "nothing to predict" in fails(capsys, "eval", finished, tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("né")
    assert "line 1, column 2: 'é'" in fails(capsys, "eval", finished, tmp_path / "x.txt")
