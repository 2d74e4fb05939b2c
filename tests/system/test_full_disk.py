"""A disk that is full or read-only during a run: nothing is lost, and --resume continues exactly."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from helpers.small_run import SMALL, assert_same, small_corpus, small_model

from charjax import fit, load_model
from charjax.errors import UserError
from charjax.progress.reporter import NullReporter
from charjax.runs.checkpoint import read_header
from charjax.runs.logs import AppendLog, read_metrics

CORPUS = small_corpus()
MODEL = small_model(CORPUS)
# One step per call, so that losses are summed in the same order wherever a run is stopped.
EVERY = {"eval_every": 8, "checkpoint_every": 4, "steps_per_call": 1}


def fits(out, **options):
    return fit(MODEL, CORPUS, SMALL, **EVERY, out=out, **options)


def untimed(out):
    return [(metrics.step, metrics.train_loss, metrics.val_loss) for metrics in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return fits(out), out


def check_exact(out, whole):
    """Checks that a resumed run ends like an uninterrupted one, with the same model."""
    state, whole_out = whole
    assert_same(fits(out, resume=True), state)
    assert untimed(out) == untimed(whole_out)
    assert (out / "samples.txt").read_bytes() == (whole_out / "samples.txt").read_bytes()
    assert_same(load_model(out)[1], load_model(whole_out)[1])


# ---- errors raised instead of the system's


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("written", [0, 10])
def test_a_line_that_is_cut_off_loses_nothing(whole, tmp_path, monkeypatch, name, written):
    append, entries = AppendLog.write, []

    def write(self, entry):
        if self.path.name == name:
            entries.append(entry)
            if len(entries) == 2:
                append(self, entry[:written])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(AppendLog, "write", write)
        with pytest.raises(UserError, match=f"{name} cannot be written .No space left on device.; earlier checkpoints"):
            fits(tmp_path / "run")
    check_exact(tmp_path / "run", whole)


# ---- a disk of a few megabytes, mounted in a namespace of its own

PRIVATELY = ["unshare", "--user", "--map-root-user", "--mount"]
# Room for nothing, and for half a checkpoint.
KILOBYTES = [0, 64]


def may_mount():
    if shutil.which("unshare") is None:
        return False
    mount = [*PRIVATELY, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def mounted(function, folder):
    """Runs a function of this module in a process that may mount -> the JSON lines that it prints."""
    code = f"import pathlib, sys, test_full_disk; test_full_disk.{function.__name__}(pathlib.Path(sys.argv[1]))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "system"), str(ROOT / "tests"), str(ROOT)]),
    }
    done = subprocess.run(
        [*PRIVATELY, sys.executable, "-c", code, str(folder)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def mount(folder, *options):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(folder)], check=True)


def fill(path, kilobytes):
    """Writes a file that leaves this much free space on its disk."""
    with path.open("wb") as file:
        disk = os.fstatvfs(file.fileno())
        size = disk.f_bavail * disk.f_frsize - 1024 * kilobytes
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)


class Filler(NullReporter):
    """Fills the disk at step 10, once the save of step 8 has removed checkpoint 0, which would free space."""

    def __init__(self, run, path, kilobytes):
        self.run, self.path, self.kilobytes = run, path, kilobytes

    def update(self, step, loss):
        if step >= 10 and not self.path.exists():
            while {path.name for path in (self.run / "checkpoints").iterdir()} != {"4", "8"}:
                time.sleep(0.01)
            fill(self.path, self.kilobytes)


def error_of(out, **options):
    """The error of a training run, or an empty line."""
    try:
        fits(out, **options)
    except UserError as error:
        return str(error)
    return ""


def fill_disks(folder):
    whole, disk = (fits(folder / "whole"), folder / "whole"), folder / "disk"
    for kilobytes in KILOBYTES:
        mount(disk, "-t", "tmpfs", "-o", "size=4m", "none")
        errors = [error_of(disk / "run", reporter=Filler(disk / "run", disk / "filler", kilobytes))]
        errors.append(error_of(disk / "run", resume=True))
        (disk / "filler").unlink()
        check_exact(disk / "run", whole)
        shutil.rmtree(disk / "run")
        fill(disk / "filler", kilobytes)
        errors.append(error_of(disk / "new" / "run"))
        (disk / "filler").unlink()
        is_kept = (disk / "new").exists()
        if is_kept:
            check_exact(disk / "new" / "run", whole)
        print(json.dumps([errors, is_kept]), flush=True)
        subprocess.run(["umount", str(disk)], check=True)


def forbid_writing(folder):
    run = folder / "run"
    fits(run, epochs=1)
    mount(run, "--bind", str(run))
    mount(run, "-o", "remount,bind,ro")
    load_model(run)
    errors = error_of(run, resume=True)
    subprocess.run(["umount", str(run)], check=True)
    before = read_header(run).progress.step
    fits(run, resume=True)
    print(json.dumps([errors, before, read_header(run).progress.step]))


needs_mounts = pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here, even privately")


@needs_mounts
def test_a_full_disk_is_reported_in_one_line_and_loses_nothing(tmp_path):
    for errors, is_kept in mounted(fill_disks, tmp_path):
        first, again, new = (line.partition(" cannot be written (No space left on device); ")[2] for line in errors)
        kept = "earlier checkpoints are kept; free some space or files, and continue with --resume"
        assert (first, again) == (kept, kept), errors
        assert new == (kept if is_kept else "nothing was kept; free some space or files, or choose another --out"), (
            errors
        )


@needs_mounts
def test_a_read_only_file_system(tmp_path):
    ((errors, before, after),) = mounted(forbid_writing, tmp_path)
    assert "cannot be written (Read-only file system); earlier checkpoints are kept; make its file" in errors
    assert 0 < before < after
