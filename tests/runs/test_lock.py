"""One process at a time writes to a run folder, and a lock is gone with its process."""

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys

import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit
from charjax.errors import UserError
from charjax.progress.reporter import NullReporter
from charjax.runs.compatibility import describe_run
from charjax.runs.folder import RunFolder
from charjax.runs.lock import LOCK, FolderLock
from charjax.runs.metadata import Progress

CORPUS = small_corpus()
MODEL = small_model(CORPUS)
HOLD = """
import sys
from pathlib import Path
from charjax.runs.lock import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process with a lock on the folder tmp_path / "run"."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def content(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_folder_in_use_is_not_started_over(holder, tmp_path):
    with pytest.raises(UserError, match=f"run is in use by process {holder.pid} on .*; wait until it ends"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    holder.kill()
    holder.wait()
    fit(MODEL, CORPUS, SMALL, out=tmp_path / "run", epochs=1)
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_folder_in_use_is_not_resumed(run):
    lock = FolderLock(run)
    lock.acquire()
    before = content(run)
    with pytest.raises(UserError, match="is in use by process"):
        fit(MODEL, CORPUS, SMALL, out=run, epochs=1, resume=True)
    assert content(run) == before
    lock.release()
    fit(MODEL, CORPUS, SMALL, out=run, epochs=1, resume=True)


def test_a_folder_that_another_run_created_in_the_meantime(tmp_path):
    info = describe_run(MODEL, CORPUS, SMALL)
    with RunFolder(tmp_path / "run", info, resume=False) as folder:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").write_text("")
        with pytest.raises(UserError, match="changed by another process at the same time; choose another --out"):
            folder.begin(Progress(step=0))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["theirs"]


def test_a_file_removed_between_opening_and_locking_is_not_locked(tmp_path, monkeypatch):
    lock, opened = FolderLock(tmp_path), []

    def remove_the_first(file, _):
        opened.append(file)
        if len(opened) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", remove_the_first)
    lock.acquire()
    assert len(opened) == 2
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, logger="charjax"):
        FolderLock(tmp_path).acquire()
    assert f"{tmp_path} cannot be locked; make sure that no other process is training in it" in caplog.text


def test_other_errors_are_raised(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        FolderLock(tmp_path).acquire()


class AtStep(NullReporter):
    """Does something to a run's folder once, at the sixth step."""

    def __init__(self, action):
        self.action = action

    def update(self, step, loss):
        if step >= 6 and self.action is not None:
            action, self.action = self.action, None
            action()


def short_run(folder, action=None, **options):
    # No checkpoint is due, so nothing is being saved while the folder is moved.
    options |= {"steps_per_call": 3, "checkpoint_every": 1000, "epochs": 2}
    return fit(MODEL, CORPUS, SMALL, out=folder, reporter=AtStep(action), **options)


def test_a_folder_that_another_run_has_replaced_is_left_alone(tmp_path):
    """Someone moves the folder of a run in progress, and starts another one under its name."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    state_of_the_other = []

    def replace():
        run.rename(moved)
        short_run(run)
        state_of_the_other.append(content(run))

    with pytest.raises(UserError, match=f"^{run} was moved, removed or replaced while a run was training in it; "):
        short_run(run, replace)
    assert content(run) == state_of_the_other[0]
    short_run(moved, resume=True)
    short_run(run, resume=True)


def test_a_run_ends_with_its_folder(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="was moved, removed or replaced"):
        short_run(run, lambda: shutil.rmtree(run))
    assert not run.exists()


def test_releasing_twice_or_after_the_folder_is_gone_is_harmless(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FolderLock(folder)
    lock.acquire()
    (folder / LOCK).unlink()
    folder.rmdir()
    lock.release()
    lock.release()
