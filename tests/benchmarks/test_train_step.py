"""`python -m benchmarks.train_step`: what stops it, and what it shows."""

import pytest

from benchmarks.train_step import LOSS_TOLERANCE, losses_agree, summary, table

SIZES = {"hidden_dim": 128, "hidden_layers": 2, "batch_size": 10, "dtype": "float32"}


def row(**seconds):
    return {"sizes": SIZES, "peers": {peer: {"seconds": 3 * [s], "median_seconds": s} for peer, s in seconds.items()}}


def test_a_summary_takes_the_faster_pytorch():
    found = summary([row(charjax=1.0, torch=2.0, flax=3.0), row(charjax=1.0, torch=9.0, **{"torch compiled": 8.0})])
    assert found["torch / charjax, float32"] == {"geometric_mean": pytest.approx(4), "least": 2, "points": 2}
    assert found["flax / charjax, float32"]["points"] == 1


def test_a_table_has_a_line_for_peers_that_cannot_run():
    failed = row(charjax=1.0)
    failed["peers"]["torch"] = {"cannot_run": "no torch"}
    *_, line = table([failed], ["charjax", "torch"], {"float32": 100.0}).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")][:8] == [
        "128", "2", "10", "float32", "1000.0", "-", "-", "-",
    ]  # fmt: skip


def test_losses_that_differ_stop_the_benchmark():
    peers = {"charjax": {"losses": [4.0, 3.0]}, "torch": {"losses": [4.0, 3.0 + 2 * LOSS_TOLERANCE["float32"]]}}
    with pytest.raises(SystemExit, match="differ"):
        losses_agree(peers, "float32")
    assert losses_agree({"charjax": {"losses": [4.0]}, "torch": {"cannot_run": "x"}}, "float32") is None
