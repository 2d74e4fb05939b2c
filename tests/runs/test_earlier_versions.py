"""Runs of earlier versions, kept in tests/data/runs: models are read, training goes on; later ones are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import fails, shows
from helpers.small_run import SMALL, small_corpus, small_model

import charjax
from charjax import init_carry, load_model
from charjax.errors import UserError
from charjax.runs.checkpoint_header import read_header
from charjax.runs.compatibility import describe_run
from charjax.runs.integrity import write_digests
from charjax.runs.logs import read_metrics
from charjax.runs.metadata import FORMAT, Progress

KEPT = sorted((Path(__file__).parents[1] / "data" / "runs").glob("*.tar.xz"))


@pytest.fixture
def kept(request, tmp_path):
    """The folder of an unpacked archive."""
    shutil.unpack_archive(request.param, tmp_path, filter="data")
    return tmp_path


def logits(run):
    model, params, vocab = load_model(run)
    found, _ = model.apply({"params": params}, vocab.encode("please.")[None], init_carry(model, 1))
    return np.asarray(found)[0]


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name, indirect=True)
def test_a_run_is_read_sampled_and_resumed(kept, capsys):
    run, expected = kept / "run", json.loads((kept / "expected.json").read_text())
    if (run / "model.safetensors").exists():
        np.testing.assert_allclose(logits(run), expected["logits"], rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(UserError, match="to write it, run charjax train with --resume"):
            load_model(run)
    shows(capsys, "train", kept / "coffee.txt", "--out", run, "--resume", "--epochs", "2")
    first, second = read_metrics(run / "metrics.jsonl")
    assert second.val_loss == pytest.approx(expected["loss after a second pass"], rel=1e-4)
    assert second.val_loss < first.val_loss
    np.testing.assert_allclose(logits(run), expected["logits after a second pass"], rtol=1e-3, atol=1e-4)
    assert len(shows(capsys, "sample", run, "--context", "a flat", "--length", "20")) == 6 + 20 + 1


@pytest.mark.parametrize("kept", KEPT[-1:], indirect=True)
def test_a_run_of_a_later_version_is_refused(kept, capsys):
    run, metadata = kept / "run", metadata_of(kept / "run")
    later = {"format": FORMAT + 1, "news": 1}
    why = f"its format version is {FORMAT + 1}, but charjax {charjax.__version__} only knows {FORMAT}; upgrade charjax"
    config, checkpoint = (json.loads(path.read_text()) for path in (run / "config.json", metadata))
    (run / "config.json").write_text(json.dumps(config | later))
    assert fails(capsys, "sample", run) == f"{run} cannot be loaded: {why}"
    checkpoint["custom_metadata"]["info"] |= later
    metadata.write_text(json.dumps(checkpoint))
    write_digests(metadata.parent)
    resumed = fails(capsys, "train", kept / "coffee.txt", "--out", run, "--resume", "--epochs", "2")
    assert resumed == f"checkpoint 13 of {run} was written by a different version of charjax: {why}"


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name, indirect=True)
def test_new_names_in_the_files_come_with_a_new_format(kept):
    """Otherwise a version that does not know them could not say that it needs an upgrade."""
    stored = json.loads(metadata_of(kept / "run").read_text())["custom_metadata"]
    corpus = small_corpus()
    now = {"info": describe_run(small_model(corpus), corpus, SMALL).to_dict(), "progress": Progress(step=0).to_dict()}
    if stored["info"].get("format") == FORMAT:
        assert names(stored) == names(now)


def metadata_of(run):
    """The file in the latest checkpoint that has the run's configuration and progress."""
    return read_header(run).path / "_CHECKPOINT_METADATA"


def names(values):
    return {name: names(value) for name, value in values.items()} if isinstance(values, dict) else None
