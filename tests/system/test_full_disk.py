"""A disk that is full, or may not be written, in the middle of a run: nothing is lost, and --resume goes on exactly."""

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
# One step per call, whose losses are added up in the same order however often a run is stopped.
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
    """Checks that a run goes on to the same end as one that was left alone."""
    state, whole_out = whole
    assert_same(fits(out, resume=True), state)
    assert untimed(out) == untimed(whole_out)
    assert (out / "samples.txt").read_bytes() == (whole_out / "samples.txt").read_bytes()


# ---- refusals put in place of the system's


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("written", [0, 10])
def test_a_line_that_is_cut_off_is_no_loss(whole, tmp_path, monkeypatch, name, written):
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
        with pytest.raises(
            UserError, match=f"{name} cannot be written .No space left on device.; the checkpoints saved"
        ):
            fits(tmp_path / "run")
    check_exact(tmp_path / "run", whole)


# ---- a disk of a few megabytes, mounted where no other process sees it

PRIVATELY = ["unshare", "--user", "--map-root-user", "--mount"]
# From nothing, by the sizes of the files that a checkpoint is made of, up to nearly a whole one.
KILOBYTES = [0, 4, 12, 32, 64, 96, 144]


def may_mount():
    if shutil.which("unshare") is None:
        return False
    mount = [*PRIVATELY, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def mounted(function, folder):
    """Runs a function of this module in a process that may mount: -> what it prints."""
    code = f"import pathlib, sys, test_full_disk; test_full_disk.{function.__name__}(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
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
    """Writes a file that leaves so much room on its disk."""
    with path.open("wb") as file:
        disk = os.fstatvfs(file.fileno())
        size = disk.f_bavail * disk.f_frsize - 1024 * kilobytes
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)


class Filler(NullReporter):
    """Fills the disk at a step."""

    def __init__(self, path, kilobytes, at_step):
        self.path, self.kilobytes, self.at_step = path, kilobytes, at_step

    def update(self, step, loss):
        if step >= self.at_step and not self.path.exists():
            time.sleep(1)  # until the save before is through: the checkpoint that it removes would make room
            fill(self.path, self.kilobytes)


def refused(out, **options):
    """What a training is refused with, or an empty line."""
    try:
        fits(out, **options)
    except UserError as error:
        return str(error)
    return ""


def fill_disks(folder):
    whole, disk = (fits(folder / "whole"), folder / "whole"), folder / "disk"
    for kilobytes in KILOBYTES:
        mount(disk, "-t", "tmpfs", "-o", "size=4m", "none")
        told = [refused(disk / "run", reporter=Filler(disk / "filler", kilobytes, at_step=10))]
        told.append(refused(disk / "run", resume=True))
        (disk / "filler").unlink()
        check_exact(disk / "run", whole)
        shutil.rmtree(disk / "run")
        fill(disk / "filler", kilobytes)
        told.append(refused(disk / "new" / "run"))
        (disk / "filler").unlink()
        is_kept = (disk / "new").exists()
        if is_kept:
            check_exact(disk / "new" / "run", whole)
        print(json.dumps([told, is_kept]), flush=True)
        subprocess.run(["umount", str(disk)], check=True)


def forbid_writing(folder):
    run = folder / "run"
    fits(run, epochs=1)
    mount(run, "--bind", str(run))
    mount(run, "-o", "remount,bind,ro")
    load_model(run)
    told = refused(run, resume=True)
    subprocess.run(["umount", str(run)], check=True)
    before = read_header(run).progress.step
    fits(run, resume=True)
    print(json.dumps([told, before, read_header(run).progress.step]))


needs_mounts = pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here, even privately")


@needs_mounts
def test_what_does_not_fit_any_more_is_told_in_a_line_and_made_up_for(tmp_path):
    for told, is_kept in mounted(fill_disks, tmp_path):
        first, again, new = (line.partition(" cannot be written (No space left on device); ")[2] for line in told)
        kept = "the checkpoints saved before are kept: make room, and go on with --resume"
        assert (first, again) == (kept, kept), told
        assert new == (kept if is_kept else "nothing was kept: make room, or choose another --out"), told


@needs_mounts
def test_a_file_system_mounted_for_reading(tmp_path):
    ((told, before, after),) = mounted(forbid_writing, tmp_path)
    assert "cannot be written (Read-only file system); the checkpoints saved before are kept: make its file" in told
    assert 0 < before < after
