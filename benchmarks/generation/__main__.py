"""Characters per second of `charjax.generate` beside PyTorch's best loop, flax, and the reading of the weights.

    python -m benchmarks.generation          the whole grid, to the terminal
    python -m benchmarks.generation --out    and as JSON into benchmarks/results
    python -m benchmarks.generation --tiny   a rehearsal, in seconds

Text is drawn at temperature 1 after a context of 16 characters. Every peer has a process of its own and the same
weights; before any time counts, its logits after a forced text must be the model's, and a text that it draws must be
as surprising as the model says. Then peers take turns. In each round a peer draws a single character a few times, and
whole texts: characters per second are those of a text after its first character, so that neither reading the context
nor arranging the weights is in them; the time to the first character stands beside them. Ratios are taken within a
round; medians of rounds are shown, with the least and the largest.

The limit is what reading every weight of a step once allows, measured in the same rounds by a small program in C++. It
is close where a text or a few are drawn; with many streams arithmetic is the limit, which the last column is a share
of. PyTorch is whatever is fastest of its loops, eager or compiled, on one thread or all, in either number format.
Weights in int8 are charjax's alone, and compared with the same.
"""

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.generation import bandwidth, report
from benchmarks.generation.measure import measure
from benchmarks.generation.serve import SIDES
from benchmarks.generation.worker import Worker

GRID = {"hidden_dim": [128, 512], "streams": [1, 32, 1024]}
TINY = {"hidden_dim": [32], "streams": [8]}
DTYPES = ["float32", "bfloat16", "int8"]
LAYERS = 2
# Steps of a text: about a second of a slow peer's time, and a multiple of what a compiled call takes.
LEAST_STEPS, MOST_STEPS, STEPS_OF_ALL = 48, 2048, 8192


def text_length(streams: int) -> int:
    """Characters of a text, the first one and as many steps after it as all peers have time for."""
    return 1 + max(LEAST_STEPS, min(MOST_STEPS, STEPS_OF_ALL // streams))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at small sizes, without torch compiled")
    parser.add_argument("--out", type=Path, nargs="?", const=machine.RESULTS, help="write JSON, into a folder if given")
    parser.add_argument("--rounds", type=int, help="rounds per point (default 3, tiny 1)")
    parser.add_argument("--seconds", type=float, help="of a peer in a round (default 0.7, tiny 0.01)")
    parser.add_argument("--peers", nargs="*", choices=list(SIDES), help="peers beside charjax (default all)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default all, tiny float32")
    parser.add_argument("--hidden-layers", type=int, default=LAYERS, help=f"default {LAYERS}")
    for name, values in GRID.items():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=int, help=f"default {values}")
    arguments = parser.parse_args(argv)
    dtypes = arguments.dtypes or (DTYPES[:1] if arguments.tiny else DTYPES)
    default = TINY if arguments.tiny else GRID
    axes = [getattr(arguments, name) or default[name] for name in GRID]
    others = [kind for kind in SIDES if not (arguments.tiny and kind == "torch compiled")]
    kinds = list(dict.fromkeys(["charjax", *(others if arguments.peers is None else arguments.peers)]))
    plan = {
        "rounds": arguments.rounds or (1 if arguments.tiny else 3),
        "seconds": arguments.seconds or (0.01 if arguments.tiny else 0.7),
    }

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as started:

        def start(kind: str, dtype: str) -> Worker:
            worker = Worker(kind, dtype, Path(folder))
            started.callback(worker.close)
            return worker

        program = bandwidth.build(Path(folder))
        judge = start("charjax", "float32")
        # XLA has no product of bytes to compare with.
        with_peak = [dtype for dtype in dtypes if not arguments.tiny and dtype != "int8"]
        peak = {dtype: judge.ask(do="peak", dtype=dtype)["gflops"] for dtype in with_peak}
        pairs = itertools.product(kinds, dtypes)
        workers = [start(kind, dtype) for kind, dtype in pairs if kind == "charjax" or dtype != "int8"]
        for values in itertools.product(*axes):
            sizes = {**dict(zip(GRID, values, strict=True)), "hidden_layers": arguments.hidden_layers}
            rows.append(measure(sizes, text_length(sizes["streams"]), workers, judge, program, **plan))
            print("\n".join(report.speed_table(rows[-1:], dtypes, peak).splitlines()[2:]), flush=True)
    print("\n" + report.speed_table(rows, dtypes, peak))
    print("\nTo the first character (ms), compiling (s):\n\n" + report.times_table(rows, dtypes) + "\n")
    for dtype in dtypes:
        for name, numbers in report.summary(rows, dtype).items():
            print(f"{name}, {dtype}: geometric mean {numbers['geometric_mean']:.2f}, least {numbers['least']:.2f}")
    if arguments.out:
        for path in report.save(arguments.out, rows, dtypes, {"peak_gflops": peak, **plan}):
            print("written:", path)


if __name__ == "__main__":
    main()
