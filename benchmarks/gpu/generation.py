"""Stage 3: sampling, charjax's decoding beside a loop in PyTorch, in characters per second."""

import itertools
from typing import Any

from benchmarks.gpu.run import Peer, Run
from benchmarks.gpu.train_step import OURS

LAYERS = 2


def run_generation(run: Run, share: float) -> None:
    """All numbers of streams for the larger model first, in the faster format first."""
    stage = run.results.stage("generation")
    items = [
        {"dtype": dtype, "hidden_dim": hidden, "hidden_layers": LAYERS, "streams": streams, "length": run.plan.length}
        for dtype, hidden, streams in itertools.product(
            ("bfloat16", "float32"), run.plan.generation_hidden, run.plan.streams
        )
    ]

    def measure(sizes: dict[str, Any]) -> None:
        run.say(f"generation: H {sizes['hidden_dim']}, {sizes['streams']} streams, {sizes['dtype']}")
        stage["rows"].append(run.measure("generate", sizes, _peers(run, sizes["dtype"]), 1))
        run.results.save()

    stage["not_run"] = run.clock.take(items, share, measure)


def _peers(run: Run, dtype: str) -> list[Peer]:
    found = [Peer(OURS, "jax", {"dtype": dtype})]
    if run.about["jax"]["platform"] == "gpu":
        # Its kernel chooses the characters; by evidence from here it may become the default.
        found.append(Peer("mosaic_gpu", "jax", {"dtype": dtype, "implementation": "mosaic_gpu"}))
    if "torch" in run.workers:
        graph = run.about["torch"]["platform"] == "cuda"
        for name, cells in (("torch nn.LSTM", False), ("torch nn.LSTMCell", True)):
            found.append(Peer(name, "torch", {"dtype": dtype, "cells": cells, "graph": graph}))
    return found
