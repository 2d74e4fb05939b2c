"""Times a whole training step against peers, in turn, one process each, and writes what it finds.

    python -m benchmarks.train_step            the whole grid
    python -m benchmarks.train_step --quick    a few sizes, under two minutes

Every number is the median over rounds in which the peers run one after another; a ratio is the median of the rounds'
own ratios, with the smallest and the largest beside it. Before any time counts, the losses of charjax and PyTorch must
agree over the first steps from the same weights.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.peers import PEERS, SEQ_LEN, VOCAB

GRID = {"hidden_dim": [128, 256, 512], "hidden_layers": [1, 2, 3], "batch_size": [32, 64, 256]}
QUICK = {"hidden_dim": [128, 256], "hidden_layers": [2], "batch_size": [64]}
LOSSES = 4
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
ROUND_SECONDS = 0.4


class Worker:
    """A peer in its own process."""

    def __init__(self, peer: str, *, huge_pages: bool) -> None:
        self.peer = peer
        # A setting of glibc that any program can be started with.
        tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", peer],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | tunables,
        )  # fmt: skip

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; a peer that ended answers with why."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = [text for text in self._errors.read().splitlines() if text.strip()] or ["it ended"]
            return {"cannot_run": last[-1][:200]}
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def flops(sizes: dict[str, Any]) -> float:
    """Of the matrix products of one step: layer 0 reads rows in place of a product, training is three times forward."""
    hidden, layers = sizes["hidden_dim"], sizes["hidden_layers"]
    forward = 8 * hidden**2 * (2 * layers - 1) + 2 * hidden * VOCAB
    return 3.0 * forward * sizes["batch_size"] * SEQ_LEN


def measure(sizes: dict[str, Any], peers: list[str], rounds: int, *, huge_pages: bool) -> dict[str, Any]:
    """One point of the grid: -> per peer, its times and memory, or why it cannot run."""
    workers = {peer: Worker(peer, huge_pages=huge_pages) for peer in peers}
    row: dict[str, Any] = {"sizes": sizes, "peers": {}}
    try:
        for peer, worker in workers.items():
            row["peers"][peer] = worker.ask(do="set up", sizes=sizes, losses=LOSSES)
        row["losses_agree"] = losses_agree(row["peers"], sizes["dtype"])
        able = [peer for peer, result in row["peers"].items() if "cannot_run" not in result]
        steps = {}
        for peer in able:
            once = workers[peer].ask(do="run", steps=1)["seconds"]
            steps[peer] = max(1, math.ceil(ROUND_SECONDS / once))
            row["peers"][peer]["seconds"] = []
        for number in range(rounds):
            # Each round begins with another peer, so that none always follows the same one.
            for peer in able[number % len(able) :] + able[: number % len(able)]:
                answer = workers[peer].ask(do="run", steps=steps[peer])
                row["peers"][peer]["seconds"].append(answer["seconds"] / steps[peer])
                row["peers"][peer]["peak_megabytes"] = answer["peak_megabytes"]
    finally:
        for worker in workers.values():
            worker.close()
    for result in row["peers"].values():
        if "seconds" in result:
            result["median_seconds"] = statistics.median(result["seconds"])
    return row


def losses_agree(peers: dict[str, Any], dtype: str) -> float | None:
    """The largest difference between charjax's and PyTorch's first losses; None where one of them cannot run.

    Raises:
        SystemExit: it is too large for times to mean anything.
    """
    ours, theirs = (peers.get(peer, {}).get("losses") for peer in ("charjax", "torch"))
    if ours is None or theirs is None:
        return None
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if not difference <= LOSS_TOLERANCE[dtype]:
        raise SystemExit(f"the losses of charjax {ours} and PyTorch {theirs} differ by {difference}")
    return difference


def ratio(row: dict[str, Any], others: list[str]) -> tuple[float, float, float] | None:
    """Time of the fastest of some peers over charjax's: median, smallest and largest of the rounds'."""
    able = [peer for peer in others if "seconds" in row["peers"].get(peer, {})]
    if not able or "seconds" not in row["peers"]["charjax"]:
        return None
    best = min(able, key=lambda peer: row["peers"][peer]["median_seconds"])
    pairs = zip(row["peers"][best]["seconds"], row["peers"]["charjax"]["seconds"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(rows: list[dict[str, Any]], peers: list[str], peak: dict[str, float]) -> str:
    """The result as Markdown: milliseconds per step, ratios to charjax, its speed, memory and compile time."""
    head = ["H", "L", "B", "dtype", *(f"{peer} ms" for peer in peers)]
    head += ["torch / charjax", "flax / charjax", "char/s", "of peak", "MB", "torch MB", "first step s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        sizes, ours = row["sizes"], row["peers"]["charjax"]
        cells = [str(sizes[name]) for name in ("hidden_dim", "hidden_layers", "batch_size", "dtype")]
        for peer in peers:
            seconds = row["peers"].get(peer, {}).get("median_seconds")
            cells.append("-" if seconds is None else f"{seconds * 1e3:.1f}")
        for others in (["torch", "torch compiled"], ["flax"]):
            found = ratio(row, others)
            cells.append("-" if found is None else f"{found[0]:.2f} ({found[1]:.2f}-{found[2]:.2f})")
        seconds = ours["median_seconds"]
        cells.append(f"{sizes['batch_size'] * SEQ_LEN / seconds:,.0f}")
        cells.append(f"{flops(sizes) / seconds / 1e9 / peak[sizes['dtype']]:.0%}")
        cells += [f"{row['peers'].get(peer, {}).get('peak_megabytes', math.nan):.0f}" for peer in ("charjax", "torch")]
        cells.append(f"{ours['first_step_seconds']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and smallest of the ratios, per dtype and peer."""
    result = {}
    for dtype in sorted({row["sizes"]["dtype"] for row in rows}):
        for name, others in {"torch": ["torch", "torch compiled"], "flax": ["flax"]}.items():
            found = [ratio(row, others) for row in rows if row["sizes"]["dtype"] == dtype]
            ratios = [value[0] for value in found if value is not None]
            if ratios:
                result[f"{name} / charjax, {dtype}"] = mean_and_least(ratios)
    return result


def mean_and_least(ratios: list[float]) -> dict[str, float]:
    """What a column of ratios comes to."""
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    return {"geometric_mean": mean, "least": min(ratios), "points": len(ratios)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few sizes and rounds, under two minutes")
    parser.add_argument(
        "--huge-pages", action="store_true", help="every peer's memory in huge pages, where Linux has them"
    )
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder to write to")
    parser.add_argument("--rounds", type=int, help="rounds per size (default 5, quick 3)")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="peers beside charjax (default all)")
    parser.add_argument("--dtypes", nargs="*", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    for name, values in GRID.items():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", type=int, help=f"default {values}")
    arguments = parser.parse_args()
    default = QUICK if arguments.quick else GRID
    axes = [getattr(arguments, name) or default[name] for name in GRID]
    default_peers = ["flax", "torch"] if arguments.quick else list(PEERS)[1:]
    peers = ["charjax", *(default_peers if arguments.peers is None else arguments.peers)]
    peers = list(dict.fromkeys(peers))
    rounds = arguments.rounds or (3 if arguments.quick else 5)

    judge = Worker("charjax", huge_pages=arguments.huge_pages)
    peak = {dtype: judge.ask(do="peak", dtype=dtype)["gflops"] for dtype in arguments.dtypes}
    judge.close()
    print("matrix-product peak, GFLOP/s:", {dtype: round(value) for dtype, value in peak.items()}, flush=True)
    rows = []
    for values in itertools.product(*axes, arguments.dtypes):
        sizes = dict(zip([*GRID, "dtype"], values, strict=True))
        rows.append(measure(sizes, peers, rounds, huge_pages=arguments.huge_pages))
        print(table(rows[-1:], peers, peak).splitlines()[-1], flush=True)
    print("\n" + table(rows, peers, peak))
    totals = summary(rows)
    for name, numbers in totals.items():
        print(f"{name}: geometric mean {numbers['geometric_mean']:.2f}, least {numbers['least']:.2f}")
    setting = {"peak_gflops": peak, "rounds": rounds, "huge_pages": arguments.huge_pages}
    path = machine.save("train_step", {**setting, "summary": totals, "rows": rows}, arguments.results)
    print("written:", path)


if __name__ == "__main__":
    main()
