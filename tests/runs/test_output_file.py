"""An output file never replaces a file that is still needed."""

import gzip

import pytest

from charjax.config import DataConfig, ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.runs.layout import MODEL
from charjax.runs.metadata import CorpusInfo, RunInfo
from charjax.runs.model_file import write_info
from charjax.runs.output_file import check_output


def make_run(tmp_path, *paths, validation=None):
    """A run folder that says which texts it was trained and validated on."""
    (tmp_path / "run").mkdir()
    info = RunInfo(
        model=ModelConfig(),
        vocab=Vocab.ascii(),
        data=DataConfig(validation=validation and str(validation)),
        corpus=CorpusInfo(paths=tuple(map(str, paths))),
    )
    write_info(tmp_path / "run", info)
    (tmp_path / "run" / MODEL).touch()
    return tmp_path / "run"


def test_other_files_may_be_replaced(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("x")
    run = make_run(tmp_path, text)
    check_output(tmp_path / "new.html", [run], [text])
    (tmp_path / "old.html").write_text("x")
    check_output(tmp_path / "old.html", [run], [text])
    # Not a run: whoever reads it says so.
    check_output(tmp_path / "old.html", [tmp_path / "nowhere"], [tmp_path / "missing.txt"])


def test_folders_the_text_and_files_of_a_run_may_not(tmp_path):
    text, run = tmp_path / "text.txt", make_run(tmp_path)
    text.write_text("x")
    (tmp_path / "link.txt").symlink_to(text)
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        check_output(tmp_path, [run])
    with pytest.raises(UserError, match=r"link\.txt is the text itself"):
        check_output(tmp_path / "link.txt", [run], [text])
    with pytest.raises(UserError, match=r"config\.json is a file of the run"):
        check_output(run / "config.json", [run])


@pytest.mark.parametrize("given", ["notes/a.txt", "notes", "notes/*.txt", "nothing*.txt"])
def test_text_that_a_run_was_trained_on_may_not(tmp_path, given):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    (tmp_path / "val.txt.gz").write_bytes(gzip.compress(b"x"))
    run = make_run(tmp_path, "-", tmp_path / given, validation=tmp_path / "val.txt.gz")
    for name in ("val.txt.gz", *(["notes/a.txt"] if "nothing" not in given else [])):
        with pytest.raises(UserError, match=f"run was trained on .*{name}, which this would replace; choose another"):
            check_output(tmp_path / name, [run])
