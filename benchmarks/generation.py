"""Characters per second of `charjax.generate` beside PyTorch's best loop, flax, and the reading of the weights.

    python -m benchmarks.generation          the whole grid, to the terminal
    python -m benchmarks.generation --out    and as JSON into benchmarks/results
    python -m benchmarks.generation --tiny   a rehearsal, in seconds

Text is sampled at temperature 1 after a context of 16 characters. Every peer has a process of its own and the same
weights; before any time counts, its logits after a given text must be the model's, and a text that it samples must be
as surprising as the model says. Then peers take turns. In each round a peer samples a single character a few times, and
whole texts: characters per second are those of a text after its first character, so that neither prefill nor the
packing of weights is in them; the time to the first character is a figure of its own. Ratios are taken within a round;
medians of rounds are shown, with the least and the largest.

The limit is what reading every weight of a step once allows, measured in the same rounds by a small program in C++. One
text or a few come close to it; with many, arithmetic is the limit: the last column is a share of the peak. PyTorch is
the fastest of its loops, eager or compiled, on one thread or all, in any number format. Only charjax has int8 weights;
they are compared with the same.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import bandwidth
from benchmarks.common.contest import Contest, Peer, able
from benchmarks.common.options import add_axes, make_parser
from benchmarks.common.problem import FORCED, step_bytes, step_flops, text
from benchmarks.common.report import (
    Row,
    Spread,
    markdown,
    paired,
    show,
    show_ratio,
    summarize,
    summary_lines,
    torch_names,
    why,
)
from benchmarks.common.results import FOLDER, ResultsFile
from benchmarks.common.worker import Worker

MAKE = {
    "charjax": "jax_generation:charjax",
    "torch loop": "torch_generation:loop",
    "torch compiled": "torch_generation:compiled",
    "flax": "jax_generation:flax",
}
COMPILED = [kind for kind in MAKE if kind != "torch loop"]
GRID = {"hidden_dim": [128, 512], "streams": [1, 32, 1024]}
TINY = {"hidden_dim": [32], "streams": [8]}
DTYPES = ("float32", "bfloat16", "int8")
# Steps of a text: about a second of a slow peer's time, and a multiple of what a compiled call takes.
LEAST_STEPS, MOST_STEPS, STEPS_OF_ALL = 48, 2048, 8192
# Compile times are those of a first run.
COLD = {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

FORCED_TEXTS = 4
# Of logits that differ by about 2; bfloat16 and int8 round weights and states to three digits.
LOGITS_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.3, "int8": 0.3}
# Text is judged by the float32 model; the other formats sample from a slightly different one.
EXCESS_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03, "int8": 0.03}
DEVIATIONS = 5
LIMIT_SECONDS = 0.1
# For each candidate that a peer tries.
TRIAL_SECONDS = 0.05


def text_length(streams: int) -> int:
    """Returns the characters of a text: the first one, and as many steps after it as all peers have time for."""
    return 1 + max(LEAST_STEPS, min(MOST_STEPS, STEPS_OF_ALL // streams))


def measure(
    sizes: dict[str, Any], peers: Sequence[Peer], judge: Worker, program: Path | None, *, rounds: int, seconds: float
) -> Row:
    """Measures one point.

    Args:
        sizes: hidden_dim, hidden_layers and streams.
        peers: those to measure.
        judge: a process that knows what the model is.
        program: from `bandwidth.build`; None leaves the limit out.
        rounds: of all peers.
        seconds: that a peer takes in a round, at least one text.

    Returns:
        "peers", what each reported and its times by round, or why it cannot run; "limits", the reading of the weights
        by dtype and round.

    Raises:
        SystemExit: a peer does not compute the model.
    """
    contest, length = Contest(), text_length(sizes["streams"])
    results = contest.set_up(peers, sizes=sizes, length=length, trial=min(seconds, TRIAL_SECONDS))
    for peer in able(peers, results):
        results[peer.name] |= check(peer, judge, sizes)
    dtypes = dict.fromkeys(peer.spec["dtype"] for peer in peers)
    limits: dict[str, Any] = {dtype: {"step_bytes": step_bytes(sizes, dtype), "rounds": []} for dtype in dtypes}
    for _ in contest.in_turn(peers, results, rounds, lambda _: {"seconds": seconds}):
        for limit in limits.values() if program else ():
            limit["rounds"].append(bandwidth.measure(program, limit["step_bytes"], min(seconds, LIMIT_SECONDS)))
    for peer in able(peers, results):
        result = results[peer.name]
        times = zip(result["text_seconds"], result["first_seconds"], strict=True)
        seconds_of_steps = [text - first for text, first in times]
        if min(seconds_of_steps) <= 0:
            result["cannot_run"] = "a text took no longer than its first character; use a larger --seconds"
            continue
        result["characters_per_second"] = [(length - 1) * sizes["streams"] / taken for taken in seconds_of_steps]
        result["median"] = statistics.median(result["characters_per_second"])
    return {"sizes": sizes, "length": length, "peers": results, "limits": limits}


def check(peer: Peer, judge: Worker, sizes: dict[str, Any]) -> dict[str, float]:
    """Compares a peer with the model: its logits after a given text, and a text that it has sampled.

    Raises:
        SystemExit: they are not the model's.
    """
    dtype = peer.spec["dtype"]
    forced = text(FORCED_TEXTS, FORCED).tolist()
    expected = np.asarray(judge.ask("jax_generation:reference", sizes=sizes, ids=forced)["logits"])
    difference = float(np.max(np.abs(np.asarray(_ask(peer, "logits", ids=forced)) - expected)))
    if not difference <= LOGITS_TOLERANCE[dtype]:
        raise SystemExit(f"{peer.name}: its logits differ from the model's by {difference}, at {sizes}")
    ids = _ask(peer, "ids", seed=0)
    verdict = judge.ask("jax_generation:judge", sizes=sizes, ids=ids)
    if not abs(verdict["excess"]) <= EXCESS_TOLERANCE[dtype] + DEVIATIONS * verdict["deviation"]:
        raise SystemExit(f"{peer.name}: its text is not sampled from the model: {verdict}, at {sizes}")
    if len({tuple(row) for row in ids}) < sizes["streams"]:
        raise SystemExit(f"{peer.name}: samples the same text twice in one batch, at {sizes}")
    return {"logits_difference": difference, **verdict}


def _ask(peer: Peer, do: str, **request: Any) -> Any:
    answer = peer.worker.ask(do, peer=peer.name, **request)
    if "cannot_run" in answer:
        raise SystemExit(f"{peer.name}: {answer['cannot_run']}")
    return answer[do]


def better_torch(row: Row) -> str | None:
    """Returns the fastest of PyTorch's peers, eager or compiled, in any number format."""
    names = [name for name in torch_names(row) if "median" in row["peers"][name]]
    return max(names, key=lambda name: row["peers"][name]["median"], default=None)


def rate_ratio(row: Row, ours: str, theirs: str | None) -> Spread | None:
    """Returns a peer's characters per second over another's; None where one has none."""
    rates = [row["peers"].get(name, {}).get("characters_per_second") for name in (ours, theirs)]
    return None if None in rates else paired(*rates)


def limit(row: Row, dtype: str) -> list[float]:
    """Returns the characters per second, round by round, of a machine that only reads each step's weights."""
    return [row["sizes"]["streams"] / read["seconds"] for read in row["limits"][dtype]["rounds"]]


def of_limit(row: Row, dtype: str) -> Spread | None:
    """Returns charjax's characters per second as a share of the limit."""
    rates, limits = row["peers"].get(f"charjax {dtype}", {}).get("characters_per_second"), limit(row, dtype)
    return paired(rates, limits) if rates and limits else None


def speed_table(rows: list[Row], dtypes: Sequence[str], peak: dict[str, float]) -> str:
    """Returns characters per second over all texts, and their ratios."""
    head = ["H", "streams", "dtype", *MAKE, "charjax / better torch", "which", "charjax / flax", "limit"]
    head += ["charjax / limit", "of peak"]
    return markdown(head, [_speed_line(row, dtype, peak.get(dtype)) for dtype in dtypes for row in rows])


def _speed_line(row: Row, dtype: str, peak: float | None) -> list[str]:
    better, ours = better_torch(row), f"charjax {dtype}"
    medians = [row["peers"].get(f"{kind} {dtype}", {}).get("median") for kind in MAKE]
    flops, limits = step_flops(row["sizes"]) / row["sizes"]["streams"], limit(row, dtype)
    return [
        *_sizes(row, dtype),
        *map(show, medians),
        show_ratio(rate_ratio(row, ours, better)),
        "-" if better is None else better.removeprefix("torch "),
        show_ratio(rate_ratio(row, ours, f"flax {dtype}")),
        show(statistics.median(limits) if limits else None),
        show_ratio(of_limit(row, dtype)),
        show(peak and medians[0] and medians[0] * flops / peak / 1e9, ".0%"),
    ]


def times_table(rows: list[Row], dtypes: Sequence[str]) -> str:
    """Returns milliseconds to the first character, seconds of compiling, and how PyTorch was fastest."""
    head = ["H", "streams", "dtype", *(f"{kind} ms" for kind in MAKE), *(f"{kind} s" for kind in COMPILED)]
    head += ["torch loop is", "torch compiled is", "GB/s"]
    return markdown(head, [_times_line(row, dtype) for dtype in dtypes for row in rows])


def _times_line(row: Row, dtype: str) -> list[str]:
    results = {kind: row["peers"].get(f"{kind} {dtype}", {}) for kind in MAKE}
    firsts = (result.get("first_seconds") for result in results.values())
    rates = [read["gigabytes_per_second"] for read in row["limits"][dtype]["rounds"]]
    return [
        *_sizes(row, dtype),
        *(show(first and 1e3 * statistics.median(first), ".1f") for first in firsts),
        *(show(results[kind].get("compile_seconds"), ".1f") for kind in COMPILED),
        *(_described(results[kind]) for kind in ("torch loop", "torch compiled")),
        ", ".join(f"{max(rate[n] for rate in rates):.0f} ({n})" for n in rates[0]) if rates else "-",
    ]


def _sizes(row: Row, dtype: str) -> list[str]:
    return [str(row["sizes"]["hidden_dim"]), str(row["sizes"]["streams"]), dtype]


def _described(result: dict[str, Any]) -> str:
    """Returns how a peer of PyTorch's was fastest."""
    if "step" not in result:
        return why(result)
    words = [result["step"], f"{result['threads']} threads", result["sampling"].removeprefix("by_")]
    words += ["autocast"] if result.get("autocast") else []
    words += [result["mode"], f"{result['steps_per_call']} steps"] if "mode" in result else []
    return " ".join(words)


def summary(rows: list[Row], dtype: str) -> dict[str, Any]:
    """Returns geometric mean and least of the ratios."""
    ours = f"charjax {dtype}"
    return summarize(
        {
            "charjax / better torch": [rate_ratio(row, ours, better_torch(row)) for row in rows],
            "charjax / flax": [rate_ratio(row, ours, f"flax {dtype}") for row in rows],
        }
    )


def part(row: Row, dtype: str) -> Row:
    """Returns what a number format's file has of a row: PyTorch's peers in every format, as the best is compared."""
    peers = {name: it for name, it in row["peers"].items() if name.endswith(dtype) or name.startswith("torch")}
    shown = {"better_torch": better_torch(row), "charjax / limit": of_limit(row, dtype)}
    return {**row, "peers": peers, "limits": {dtype: row["limits"][dtype]}, **shown}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line and fills in what depends on --tiny."""
    parser = make_parser("generation", __doc__)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at small sizes, without torch compiled")
    parser.add_argument("--out", type=Path, nargs="?", const=FOLDER, help="write JSON, to a folder if given")
    parser.add_argument("--rounds", type=int, help="rounds per point (default 3, tiny 1)")
    parser.add_argument("--seconds", type=float, help="of a peer in a round (default 0.7, tiny 0.01)")
    parser.add_argument("--peers", nargs="*", choices=list(MAKE), help="peers beside charjax (default all)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default all, tiny float32")
    parser.add_argument("--hidden-layers", type=int, default=2, help="default 2")
    add_axes(parser, GRID)
    arguments = parser.parse_args(argv)
    tiny = arguments.tiny
    arguments.dtypes = arguments.dtypes or (DTYPES[:1] if tiny else DTYPES)
    arguments.axes = [getattr(arguments, name) or (TINY if tiny else GRID)[name] for name in GRID]
    others = [kind for kind in MAKE if not (tiny and kind == "torch compiled")]
    arguments.peers = list(dict.fromkeys(["charjax", *(others if arguments.peers is None else arguments.peers)]))
    arguments.rounds = arguments.rounds or (1 if tiny else 3)
    arguments.seconds = arguments.seconds or (0.01 if tiny else 0.7)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parse(argv)
    dtypes, plan = arguments.dtypes, {"rounds": arguments.rounds, "seconds": arguments.seconds}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as started:
        environment = os.environ | COLD | {"TORCHINDUCTOR_CACHE_DIR": folder}
        judge, *workers = (started.enter_context(Worker(environment)) for _ in range(1 + len(MAKE) * len(dtypes)))
        # XLA has no product of bytes to compare int8 with.
        with_peak = [dtype for dtype in dtypes if not arguments.tiny and dtype != "int8"]
        peak = {dtype: judge.ask("jax_training:peak", dtype=dtype)["gflops"] for dtype in with_peak}
        pairs = [
            pair for pair in itertools.product(arguments.peers, dtypes) if pair[0] == "charjax" or pair[1] != "int8"
        ]
        peers = [
            Peer(f"{kind} {dtype}", worker, MAKE[kind], {"dtype": dtype})
            for (kind, dtype), worker in zip(pairs, workers, strict=False)
        ]
        program = bandwidth.build(Path(folder))
        for values in itertools.product(*arguments.axes):
            sizes = {**dict(zip(GRID, values, strict=True)), "hidden_layers": arguments.hidden_layers}
            rows.append(measure(sizes, peers, judge, program, **plan))
            print("\n".join(speed_table(rows[-1:], dtypes, peak).splitlines()[2:]), flush=True)
    print("\n" + speed_table(rows, dtypes, peak))
    print("\nTo the first character (ms), compiling (s):\n\n" + times_table(rows, dtypes) + "\n")
    for dtype in dtypes:
        totals, setting = summary(rows, dtype), {"peak_gflops": peak, **plan}
        print("\n".join(f"{dtype}: {line}" for line in summary_lines(totals)))
        if arguments.out:
            its_rows = [part(row, dtype) for row in rows]
            file = ResultsFile(
                arguments.out, "generation", dtype, dtype=dtype, **setting, summary=totals, rows=its_rows
            )
            print("written:", file.save())


if __name__ == "__main__":
    main()
