"""What a sweep saves: twelve small models trained together against the same twelve in turn.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --epochs 4
    python -m benchmarks.sweep --commands

Three learning rates, two dropout rates and two seeds of 1 x 128 on the first 250,000 characters of Shakespeare. `sweep`
and twelve calls of `fit` take turns, in a process each: the first round compiles, the others have everything compiled.
With --commands, `charjax sweep` runs against twelve `charjax train`, from process start to exit, each side with a
compilation cache that is empty at first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.options import add_results, make_parser
from benchmarks.common.problem import TEXT
from benchmarks.common.report import paired
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import ROOT, Worker
from benchmarks.peers.sweeps import members

TARGET = 2.0
SWEPT = {"learning_rate": [2e-3, 4e-3, 8e-3], "dropout": [0.0, 0.2], "seeds": 2}


def by_functions(text: Path, characters: int, shared: dict[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    """Measures `sweep` and calls of `fit`: the first time, and in rounds with everything compiled."""
    problem = {"text": str(text), "characters": characters, "swept": SWEPT, "shared": shared}
    with Worker() as one, Worker() as other:
        workers = {"together": one, "in_turn": other}
        results = {name: ask(worker, name, problem) | {"compiled_seconds": []} for name, worker in workers.items()}
        for _ in range(rounds):
            for name, worker in workers.items():
                results[name]["compiled_seconds"].append(ask(worker, name, problem)["seconds"])
    return results


def ask(worker: Worker, name: str, problem: dict[str, Any]) -> dict[str, Any]:
    """Has a worker train all models; ends the benchmark if it cannot."""
    answer = worker.ask(f"sweeps:{name}", **problem)
    if "cannot_run" in answer:
        raise SystemExit(f"{name}: {answer['cannot_run']}")
    print(name, f"{answer['seconds']:.1f} s", flush=True)
    return answer


def by_commands(text: Path, characters: int, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measures `charjax sweep` and `charjax train`."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in shared.items()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(text.read_text()[:characters])
        out = folder / "sweep"
        lists = [f"--{name.replace('_', '-')}" for name in ("learning_rate", "dropout")]
        swept = [lists[0], *map(str, SWEPT["learning_rate"]), lists[1], *map(str, SWEPT["dropout"])]
        seconds = run("sweep", folder, out, *swept, f"--seeds={SWEPT['seeds']}", *options)
        found = json.loads((out / "sweep.json").read_text())["members"]
        together = {"seconds": seconds, "losses": [member["evaluations"][-1]["val_loss"] for member in found]}
        print("together", round(seconds, 1), flush=True)
        in_turn: dict[str, Any] = {"seconds_each": [], "losses": []}
        for number, (rate, dropout, seed) in enumerate(members(SWEPT)):
            out = folder / f"run-{number}"
            own = (f"--learning-rate={rate}", f"--dropout={dropout}", f"--seed={seed}", "--sample-length=0")
            in_turn["seconds_each"].append(run("train", folder, out, *own, *options))
            in_turn["losses"].append(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"])
        in_turn["seconds"] = sum(in_turn["seconds_each"])
        print("in_turn", round(in_turn["seconds"], 1), flush=True)
    return {"together": together, "in_turn": in_turn}


def run(command: str, folder: Path, out: Path, *options: str) -> float:
    """Runs a command of charjax with a compilation cache of its own -> its seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(folder / f"cache-{command}"), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "charjax", command, str(folder / "text.txt"), "--out", str(out), *options]
    start = time.perf_counter()
    subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def compare(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns how many times as fast the sweep was, and the largest difference of a loss."""
    ours, theirs = results["together"], results["in_turn"]
    differences = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    summary = {"ratio": theirs["seconds"] / ours["seconds"], "largest_difference": max(differences)}
    if "compiled_seconds" in ours:
        median, least, most = paired(theirs["compiled_seconds"], ours["compiled_seconds"])
        summary["compiled_ratio"] = {"median": median, "least": least, "most": most}
    return summary


def make_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser("sweep", __doc__)
    add_results(parser)
    parser.add_argument("--characters", type=int, default=250_000, help="of the text, from its beginning")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--hidden-layers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3, help="with everything compiled")
    parser.add_argument("--commands", action="store_true", help="measure commands instead of functions")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = make_arguments(argv)
    shared = {
        name: getattr(arguments, name) for name in ("hidden_dim", "hidden_layers", "batch_size", "dtype", "epochs")
    }
    if arguments.commands:
        results = by_commands(TEXT, arguments.characters, shared)
    else:
        results = by_functions(TEXT, arguments.characters, shared, arguments.rounds)
    summary = compare(results)
    print(f"the sweep is {summary['ratio']:.2f} times as fast as in turn (target: {TARGET:g})")
    if compiled := summary.get("compiled_ratio"):
        print("with everything compiled: {median:.2f} times ({least:.2f} to {most:.2f})".format(**compiled))
    print(f"largest difference of a validation loss: {summary['largest_difference']:.1e} nats per character")
    content = {"swept": SWEPT, "shared": shared, "characters": arguments.characters, **results, "summary": summary}
    suffix = "commands" if arguments.commands else "functions"
    print("written:", ResultsFile(arguments.results, "sweep", suffix, **content).save())


if __name__ == "__main__":
    main()
