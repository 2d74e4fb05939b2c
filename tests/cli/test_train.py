"""`charjax train`: what it prints, resuming, and one line with exit code 2 for what cannot be used."""

import contextlib
import dataclasses
import importlib
import os
import pkgutil
import resource
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from helpers.command_line import fails, shows
from helpers.small_run import TEXT
from jax.experimental.compilation_cache import compilation_cache

from charjax import CharLSTM, Corpus, fit, make_mesh, preset
from charjax.cli import commands
from charjax.cli.commands import train as train_module
from charjax.cli.main import main
from charjax.progress.reporter import NullReporter
from charjax.runs.checkpoint import read_header


@pytest.fixture
def train_fails(capsys, text, options):
    """Runs training that must fail and leave nothing behind -> the message."""

    def run(*argv, path=text):
        out = text.parent / "run"
        message = fails(capsys, "train", path, "--out", out, *options, *argv)
        assert not out.exists()
        return message

    return run


def copy_of(trained, folder):
    """Copies the shared run, to change it -> (its text, its folder)."""
    shutil.copytree(trained.run, folder / "run")
    return trained.text, folder / "run"


def test_it_prints_its_progress_and_what_to_do_next(trained):
    assert "val" in trained.out
    assert "perplexity" in trained.out
    assert trained.out.endswith(f"saved in {trained.run}; to generate text: charjax sample {trained.run}\n")
    assert "vocabulary: ascii (128 characters), because" in trained.err


def test_options_of_a_config_file_reach_the_run(text, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(
        "hidden_dim = 6\nhidden_layers = 1\nvocab = 'bytes'\nepochs = 1\nbatch_size = 8\nseq_len = 16\n"
        "sample_length = 0"
    )
    shows(capsys, "train", text, "--out", tmp_path / "run", "--config", tmp_path / "run.toml", "--hidden-dim", 7)
    info = read_header(tmp_path / "run").info
    assert (info.model.hidden_dim, info.train.epochs, info.vocab.kind) == (7, 1, "bytes")


# ---- resuming


def test_a_preset_sets_the_options_that_were_not_given(text, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--preset", "small", "--hidden-dim", 7, "--epochs", 0.1, "--batch-size", 4, "--sample-length", 0]
    shows(capsys, "train", text, "--out", run, *options)
    own = {"hidden_dim": 7, "epochs": 0.1, "batch_size": 4, "sample_length": 0}
    info, (model, train) = read_header(run).info, preset("small", len(Corpus.from_file(text).train), **own)
    assert info.model == dataclasses.replace(model, dtype=info.model.dtype)
    assert info.model.dropout == 0
    assert info.train == train
    message = fails(capsys, "train", text, "--out", run, "--resume", "--preset", "small")
    assert message == "a resumed run keeps its options; omit --preset; see charjax train --help"
    shows(capsys, "train", text, "--out", run, "--resume", "--epochs", 0.2)


def test_resuming_keeps_the_options_of_the_run(trained, tmp_path, capsys):
    text, run = copy_of(trained, tmp_path)
    shows(capsys, "train", text, "--out", run, "--resume", "--epochs", 2)
    info, progress = read_header(run)[1:]
    assert (info.train.learning_rate, info.train.epochs, info.model.hidden_dim) == (0.02, 2, 8)
    assert progress.epoch == 2
    message = fails(capsys, "train", text, "--out", run, "--resume", "--epochs", 1)
    assert "which is 2 epochs, more than --epochs 1;" in message
    assert read_header(run).info.train.epochs == 2


def test_a_damaged_checkpoint_falls_back_and_says_so(trained, tmp_path, capsys):
    text, run = copy_of(trained, tmp_path)
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    victim = run / "checkpoints" / str(steps[-1]) / "params" / "head.kernel" / "c" / "0" / "0"
    os.truncate(victim, victim.stat().st_size // 2)
    capsys.readouterr()
    assert main(["train", str(text), "--out", str(run), "--resume"]) == 0
    logged = [line for line in capsys.readouterr().err.splitlines() if f"checkpoint {steps[-1]} of " in line]
    assert len(logged) == 1
    assert f"using checkpoint {steps[0]} in" in logged[0]


def test_what_cannot_be_resumed(trained, text, tmp_path, capsys, train_fails):
    assert "does not exist" in train_fails("--resume")
    (tmp_path / "folder").mkdir()
    assert "is not a run folder" in fails(capsys, "train", text, "--out", tmp_path / "folder", "--resume")
    message = fails(capsys, "train", trained.text, "--out", trained.run, "--resume", "--hidden-dim", "9")
    assert "was trained with --hidden-dim 8, not 9; omit --hidden-dim" in message
    text.write_text("é" + TEXT)
    message = fails(capsys, "train", text, "--out", trained.run, "--resume")
    assert "was trained on different text (coffee.txt, 3,360 characters)" in message


# ---- texts


def test_files_that_are_not_texts(text, tmp_path, train_fails):
    assert "nowhere.txt does not exist; use a text file" in train_fails(path=tmp_path / "nowhere.txt")
    (tmp_path / "folder").mkdir()
    assert "folder contains no files; use a text file" in train_fails(path=tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a pipe or device; use a text file" in train_fails(path=tmp_path / "pipe")
    assert "/dev/zero is a pipe or device" in train_fails(path="/dev/zero")
    text.write_text("")
    assert "coffee.txt is empty" in train_fails()
    text.write_text("x")
    assert "has 1 character; at least 4 are needed" in train_fails()


def test_a_text_shorter_than_one_window_says_what_would_fit(text, train_fails):
    text.write_text("x" * 100)
    assert "the largest that fit: --batch-size 5 or --seq-len 11" in train_fails()
    corpus = Corpus.from_file(text)
    model, mesh = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1), make_mesh(jax.devices()[:1])
    for fitting in ({"batch_size": 5, "seq_len": 16}, {"batch_size": 8, "seq_len": 11}):
        fit(model, corpus, epochs=1, sample_length=0, mesh=mesh, **fitting)


def test_characters_outside_the_vocabulary_are_located(text, train_fails):
    text.write_text("plain\nso café\n" * 50)
    message = train_fails("--vocab", "ascii")
    assert "line 2, column 7: 'é' (U+00E9)" in message
    assert "--vocab auto, chars or bytes" in message
    text.write_bytes(b"abc\xff" * 300)
    message = train_fails("--vocab", "chars")
    assert "byte 0xff at offset 3" in message
    assert "--vocab bytes" in message


# ---- implementations


def test_an_unknown_implementation(train_fails):
    assert "'cuda'" in train_fails("--implementation", "cuda")


@pytest.mark.parametrize("name", ["cudnn", "mosaic_gpu", "mosaic_tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_implementation_for_other_devices(train_fails, name, dtype):
    error = train_fails("--implementation", name, "--dtype", dtype)
    assert f"'{name}'" in error
    assert "'cpu'" in error


# ---- folders


def test_a_run_folder_that_exists(capsys, trained, options):
    before = sorted(trained.run.rglob("*"))
    message = fails(capsys, "train", trained.text, "--out", trained.run, *options)
    assert "add --resume to" in message
    assert "or choose another --out" in message
    assert sorted(trained.run.rglob("*")) == before


def test_a_folder_inside_a_file(capsys, text, tmp_path, options):
    """Not even root can create it."""
    (tmp_path / "file").write_text("x")
    message = fails(capsys, "train", text, "--out", tmp_path / "file" / "run", *options)
    assert "cannot be written" in message
    assert "choose another --out" in message


class DiskFull(NullReporter):
    """Limits files to less than the largest array takes after some checkpoints, as if the disk were full."""

    def __init__(self, out, after):
        self.out, self.after = out, after
        self.update(0, 0.0)

    def update(self, step, loss):
        if len(list(self.out.glob("checkpoints/*/charjax_seal.json"))) >= self.after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


@pytest.fixture
def no_compilation_cache():
    """A full disk would truncate its files, too, and another user may not write them."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("no_compilation_cache")
@pytest.mark.parametrize("after", [0, 2])
def test_a_full_disk_keeps_the_checkpoints_before(capsys, text, options, tmp_path, monkeypatch, after):
    out = tmp_path / "run"
    monkeypatch.setattr(train_module, "make_reporter", lambda: DiskFull(out, after))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        message = fails(capsys, "train", text, "--out", out, *options, "--checkpoint-every=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if not after:
        assert "cannot be written (File too large); nothing was kept; " in message
        assert not out.exists()
        return
    assert "cannot be written (File too large)" in message
    assert "are kept; " in message
    assert not list((out / "checkpoints").glob("*tmp*"))
    monkeypatch.undo()
    shows(capsys, "train", text, "--out", out, "--checkpoint-every=1000", "--resume")


@contextlib.contextmanager
def somebody_else():
    """Drops root's right to read and write everything, if it has it, after loading what it may not be able to read."""
    for module in pkgutil.iter_modules(commands.__path__, "charjax.cli.commands."):
        importlib.import_module(module.name)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder(trained):
    """A copy of the shared run and its text where others may read them; pytest's own folder is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(trained.run, folder / "run")
        shutil.copy(trained.text, folder)
        yield folder


@pytest.mark.usefixtures("no_compilation_cache")
def test_a_folder_without_write_permission(capsys, options, open_folder):
    (open_folder / "closed").mkdir(mode=0o555)
    with somebody_else():
        message = fails(capsys, "train", open_folder / "coffee.txt", "--out", open_folder / "closed" / "run", *options)
    assert "closed/run cannot be written (Permission denied); nothing was kept; " in message


@pytest.mark.usefixtures("no_compilation_cache")
def test_files_that_may_not_be_read(capsys, options, open_folder):
    run, closed = open_folder / "run", open_folder / "closed.txt"
    shutil.copy(open_folder / "coffee.txt", closed)
    closed.chmod(0)
    (open_folder / "closed").mkdir(mode=0)
    denied = "Permission denied; check its permissions and those of its folder"
    with somebody_else():
        assert fails(capsys, "info", open_folder / "closed") == f"{open_folder}/closed: {denied}"
        assert fails(capsys, "eval", run, closed) == f"{closed}: {denied}"
        assert fails(capsys, "train", closed, "--out", open_folder / "other", *options) == f"{closed}: {denied}"
    (run / "checkpoints").chmod(0)
    with somebody_else():
        message = fails(capsys, "train", open_folder / "coffee.txt", "--out", run, "--resume")
    assert denied in message
