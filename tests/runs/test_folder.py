"""A run folder that cannot be written: one line that says what to do, and nothing left behind."""

import contextlib
import errno
import os
import resource
import shutil

import jax
import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit, init_train_state, make_mesh, make_optimizer, save_checkpoint
from charjax.errors import UserError
from charjax.runs.checkpoint_header import read_header
from charjax.runs.folder import RunFolder
from charjax.runs.integrity import check_digests
from charjax.runs.metadata import Progress

CORPUS = small_corpus()
MODEL = small_model(CORPUS)


def refuse(number):
    def write(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    return write


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "nothing was kept; check its permissions and those of its folder, or choose another --out"),
        (errno.EROFS, "nothing was kept; make its file system writable, or choose another --out"),
        (errno.ENOSPC, "nothing was kept; free some space or files, or choose another --out"),
        (errno.EFBIG, r"nothing was kept; raise the file size limit \(ulimit -f\), or choose another --out"),
        (errno.ENAMETOOLONG, "nothing was kept; shorten its name, or choose another --out"),
        (errno.ENOTDIR, "nothing was kept; choose another --out"),
        (errno.EMFILE, r"nothing was kept; raise the limit on open files \(ulimit -n\)"),
        (errno.ENFILE, "nothing was kept; close other programs, which have too many files open"),
    ],
)
def test_the_advice_fits_the_error(tmp_path, monkeypatch, number, advice):
    monkeypatch.setattr("charjax.runs.model_file.replacing", refuse(number))
    with pytest.raises(UserError, match=f"config.json cannot be written .*; {advice}$"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_an_error_in_a_temporary_folder_names_the_checkpoints(tmp_path, monkeypatch):
    def save(folder, *_, **__):
        refuse(errno.EMFILE)(f"{folder}.orbax-checkpoint-tmp/file")

    monkeypatch.setattr("charjax.runs.checkpoint_store.ocp.save_checkpointables_async", save)
    with pytest.raises(
        UserError, match=r"/run/checkpoints cannot be written \(Too many open files\); nothing was kept; "
    ):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "run")


def test_too_few_files_for_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.runs.folder.limit_on", {"NOFILE": 20}.get)
    with pytest.raises(UserError, match="only 20 files may be open at a time; raise the limit with ulimit -n 64"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def no_more_files():
    """Lets this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_checkpoint_is_not_damaged_because_no_more_files_can_be_opened(run):
    path = read_header(run).path
    with no_more_files(), pytest.raises(OSError, match="Too many open files"):
        check_digests(path)


@pytest.mark.parametrize("name", ["sweep/second/notes", "sweep/run/notes", "sweep/run/checkpoints/notes"])
def test_a_run_that_fails_at_its_start_removes_nothing_of_others(tmp_path, monkeypatch, name):
    def write(*_):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("charjax.runs.checkpoint_store.CheckpointStore.save", write)
    with pytest.raises(UserError, match="nothing was kept; free some space"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "sweep" / "run")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_name_that_is_too_long_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "new" / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_that_became_a_run_before_it_was_locked_is_kept(finished, tmp_path):
    """Two processes start the same command over a leftover; the first trains and ends before the second locks it."""
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "config.json", out)
    header = read_header(finished)
    with RunFolder(out, header.info, resume=False) as second:
        shutil.copytree(finished, out, dirs_exist_ok=True)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match="was changed by another process at the same time; choose another --out"):
            second.begin(header.progress)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_folders_that_are_not_checkpoints_are_ignored_and_kept(run):
    for name in ("0", "999", "x.removed", "1.set-aside"):
        (run / "checkpoints" / name).mkdir(exist_ok=True)
        (run / "checkpoints" / name / "notes").write_text("mine")
    fit(MODEL, CORPUS, SMALL, out=run, resume=True, checkpoint_every=4)
    kept = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    assert {0, 999} < kept
    assert read_header(run).progress.step == max(kept - {999})
    assert len(list((run / "checkpoints").glob("*/notes"))) == 4


def test_a_folder_in_the_way_of_a_checkpoint_is_named(run):
    step = read_header(run).progress.step + 1
    (run / "checkpoints" / str(step)).mkdir()
    with pytest.raises(UserError, match=rf"checkpoints/{step} cannot be written \(File exists\); earlier checkpoints"):
        fit(MODEL, CORPUS, SMALL, out=run, resume=True, checkpoint_every=1, steps_per_call=1)


def test_no_checkpoint_is_saved_into_a_run_in_progress(run):
    header = read_header(run)
    (run / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
    state = init_train_state(
        jax.random.key(0), MODEL, make_optimizer(SMALL, 9), batch_size=8, mesh=make_mesh(jax.devices()[:1])
    )
    with RunFolder(run, header.info, resume=True), pytest.raises(UserError, match="is in use by process"):
        save_checkpoint(run, state, header.info, Progress(step=7))
    assert (run / "checkpoints" / "7.orbax-checkpoint-tmp").exists()


def test_a_failed_clean_up_does_not_hide_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.runs.model_file.replacing", refuse(errno.EROFS))
    monkeypatch.setattr("charjax.runs.folder.remove_unfinished_start", refuse(errno.EROFS))
    with pytest.raises(UserError, match="make its file system writable"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path)


def test_a_resumed_run_is_told_that_checkpoints_are_kept(run, monkeypatch):
    monkeypatch.setattr("charjax.runs.model_file.replacing", refuse(errno.EACCES))
    with pytest.raises(
        UserError,
        match="earlier checkpoints are kept; check its permissions and those of its folder, and continue with --resume",
    ):
        fit(MODEL, CORPUS, SMALL, out=run, resume=True)


@pytest.mark.parametrize("out", ["loop", "loop/run"])
def test_a_link_to_itself(tmp_path, out):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="choose another --out"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
