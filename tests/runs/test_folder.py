"""A run folder that cannot be written: one line that says what to do, and nothing left behind."""

import errno
import os

import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit
from charjax.errors import UserError

CORPUS = small_corpus()
MODEL = small_model(CORPUS)


def refuse(number):
    def write(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    return write


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "nothing was kept: change its permissions, or choose another --out"),
        (errno.EROFS, "nothing was kept: make its file system writable, or choose another --out"),
        (errno.ENOSPC, "nothing was kept: free some space, or choose another --out"),
        (errno.ENAMETOOLONG, "nothing was kept: choose another --out"),
    ],
)
def test_the_advice_fits_the_error(tmp_path, monkeypatch, number, advice):
    monkeypatch.setattr("charjax.runs.model_file.replacing", refuse(number))
    with pytest.raises(UserError, match=f"config.json cannot be written .*; {advice}$"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_failed_clean_up_does_not_hide_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.runs.model_file.replacing", refuse(errno.EROFS))
    monkeypatch.setattr("charjax.runs.folder.remove_unfinished_start", refuse(errno.EROFS))
    with pytest.raises(UserError, match="make its file system writable"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path)


def test_a_resumed_run_is_told_that_checkpoints_are_kept(run, monkeypatch):
    monkeypatch.setattr("charjax.runs.model_file.replacing", refuse(errno.EACCES))
    with pytest.raises(
        UserError, match="earlier checkpoints are kept: change its permissions, and continue with --resume"
    ):
        fit(MODEL, CORPUS, SMALL, out=run, resume=True)


@pytest.mark.parametrize("out", ["loop", "loop/run"])
def test_a_link_to_itself(tmp_path, out):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="choose another --out"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
