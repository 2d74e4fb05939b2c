"""`python -m benchmarks.saving`: what it measures on disk."""

from benchmarks.saving import checkpoint_megabytes


def test_only_the_latest_whole_checkpoint_counts(tmp_path):
    for name, size in (("9", 1), ("10", 20), ("11.orbax-checkpoint-tmp", 300), ("12.removed", 4000)):
        (tmp_path / "checkpoints" / name / "state").mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state" / "array").write_bytes(size * b"x")
        (tmp_path / "checkpoints" / name / "metadata").write_bytes(b"{}")
    assert checkpoint_megabytes(tmp_path) == 22e-6
