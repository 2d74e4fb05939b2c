"""What a run folder says where the system refuses to write, and what it leaves behind."""

import errno
import os

import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit
from charjax.errors import UserError
from charjax.runs import folder as run_folder

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
        (errno.ENOSPC, "nothing was kept: make room, or choose another --out"),
        (errno.ENAMETOOLONG, "nothing was kept: choose another --out"),
    ],
)
def test_the_remedy_fits_the_refusal(tmp_path, monkeypatch, number, advice):
    monkeypatch.setattr(run_folder, "_write_json", refuse(number))
    with pytest.raises(UserError, match=f"config.json cannot be written .*; {advice}$"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_refused_cleaning_up_does_not_hide_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_write_json", refuse(errno.EROFS))
    monkeypatch.setattr(run_folder, "remove_leftovers", refuse(errno.EROFS))
    with pytest.raises(UserError, match="make its file system writable"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path)


def test_later_refusals_point_to_resume(tmp_path, monkeypatch):
    fit(MODEL, CORPUS, SMALL, out=tmp_path, epochs=1)
    monkeypatch.setattr(run_folder, "_write_json", refuse(errno.EACCES))
    with pytest.raises(UserError, match="saved before are kept: change its permissions, and go on with --resume"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path, resume=True)


@pytest.mark.parametrize("out", ["loop", "loop/run"])
def test_paths_that_lead_nowhere(tmp_path, out):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="choose another --out"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
