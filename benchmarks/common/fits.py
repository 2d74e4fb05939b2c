"""Trainings by `fit` that take turns, each in a process of its own: the benchmarks of saving, streaming and devices."""

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.contest import Contest, Peer, Results
from benchmarks.common.options import add_results, make_parser
from benchmarks.common.report import paired
from benchmarks.common.worker import Worker

# Turns that compile and settle; they are left out.
WARM_UP = 2
MAKE = "fit:training"
SIZES = ("hidden_dim", "hidden_layers", "batch_size", "seq_len", "every")


def make_fit_parser(name: str, doc: str | None, *, hidden_dim: int, every: int, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser of the sizes of a training, with these defaults."""
    parser = make_parser(name, doc)
    add_results(parser)
    parser.add_argument("--hidden-dim", type=int, default=hidden_dim)
    parser.add_argument("--hidden-layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=100)
    parser.add_argument("--every", type=int, default=every, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def sizes_of(arguments: argparse.Namespace) -> dict[str, int]:
    """Returns the sizes that were parsed."""
    return {name: getattr(arguments, name) for name in SIZES}


def make_training(
    name: str, sizes: Mapping[str, int], text: str | Path, *, out: Path | None = None, memory_mb: int | None = None,
    core: int | None = None, devices: int | None = None,
) -> Peer:  # fmt: skip
    """Describes a training in a process of its own.

    Args:
        name: in the results.
        sizes: of the model and the batch, and "every", the steps of a turn.
        text: file to train on.
        out: run folder; None saves nothing.
        memory_mb: of the text that may be in memory at once.
        core: the only one that it may use; None for all.
        devices: how many JAX makes of the CPU; None for one per core.
    """
    spec = {**sizes, "text": str(text), "out": out and str(out), "memory_mb": memory_mb}
    forced = {} if devices is None else {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return Peer(name, Worker(os.environ | forced, () if core is None else ("taskset", "-c", str(core))), MAKE, spec)


def take_turns(trainings: Sequence[Peer], rounds: int) -> list[dict[str, float]]:
    """Returns the seconds of each training's turn, round by round.

    Raises:
        SystemExit: a training ended.
    """
    contest, measured = Contest(), []
    with contextlib.ExitStack() as started:
        for peer in trainings:
            started.enter_context(peer.worker)
        results = contest.set_up(trainings)
        _check(results)
        for number in contest.in_turn(trainings, results, WARM_UP + rounds, lambda _: {}):
            _check(results)
            if number >= WARM_UP:
                measured.append({name: result["seconds"][-1] for name, result in results.items()})
                print({name: round(seconds, 3) for name, seconds in measured[-1].items()}, flush=True)
    return measured


def ratio_of_speeds(measured: Sequence[Mapping[str, float]], ours: str, theirs: str) -> dict[str, float]:
    """Returns median, least and most of the rounds' own ratios of our speed to theirs."""
    median, least, most = paired([it[theirs] for it in measured], [it[ours] for it in measured])
    return {"median": median, "least": least, "most": most}


def _check(results: Results) -> None:
    for name, result in results.items():
        if "cannot_run" in result:
            raise SystemExit(f"the training {name!r} ended: {result['cannot_run']}")
