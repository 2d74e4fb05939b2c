"""`python -m benchmarks.saving`: what it measures on disk."""

import shutil

from helpers.small_run import save_run, small_corpus, small_model

from benchmarks.saving import checkpoint_megabytes


def test_a_checkpoint_that_is_being_removed_does_not_count(tmp_path):
    corpus = small_corpus()
    run = save_run(tmp_path / "run", corpus, small_model(corpus))
    latest = run / "checkpoints" / "1"
    shutil.copytree(latest, latest.with_name("0.removed"))
    size = sum(path.stat().st_size for path in latest.rglob("*") if path.is_file())
    assert checkpoint_megabytes(run) == size / 1e6 > 0
