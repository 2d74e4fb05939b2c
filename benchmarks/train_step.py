"""Times a whole training step against peers, in turn, one process each.

    python -m benchmarks.train_step            the whole grid
    python -m benchmarks.train_step --quick    a few sizes, under two minutes

Every number is the median over rounds in which the peers run one after another; a ratio is the median of the rounds'
own ratios, with the smallest and the largest beside it. Before any time counts, the losses of charjax and PyTorch must
agree over the first steps from the same weights.
"""

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.contest import Contest, Peer, Results, able
from benchmarks.common.options import add_axes, add_results, make_parser
from benchmarks.common.problem import SEQ_LEN, training_flops
from benchmarks.common.report import Row, markdown, show, show_ratio, summarize, summary_lines, time_ratio
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import Worker

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "charjax": ("jax_training:charjax", {"all_cores": True}),
    "custom_vjp": ("jax_training:charjax", {"all_cores": True, "implementation": "custom_vjp"}),
    "lax.scan": ("jax_training:charjax", {"implementation": "scan"}),
    "flax": ("jax_training:flax", {}),
    "equinox": ("jax_training:equinox", {}),
    "torch": ("torch_training:lstm", {}),
    "torch compiled": ("torch_training:lstm", {"compiled": True}),
}
COMPARED = {"torch": ("torch", "torch compiled"), "flax": ("flax",)}
GRID = {"hidden_dim": [128, 256, 512], "hidden_layers": [1, 2, 3], "batch_size": [32, 64, 256]}
QUICK = {"hidden_dim": [128, 256], "hidden_layers": [2], "batch_size": [64]}
DTYPES = ("float32", "bfloat16")
LOSSES = 4
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
ROUND_SECONDS = 0.4


def measure(sizes: dict[str, Any], names: list[str], rounds: int, environment: Mapping[str, str]) -> Row:
    """Measures one point of the grid: times, memory and first losses of each peer, or why it cannot run."""
    contest = Contest()
    with contextlib.ExitStack() as started:
        peers = [Peer(name, started.enter_context(Worker(environment)), *PEERS[name]) for name in names]
        results = contest.set_up(peers, sizes=sizes, dtype=sizes["dtype"], losses=LOSSES)
        agree = losses_agree(results, sizes["dtype"])
        contest.time_steps(peers, results, rounds=rounds, least_seconds=ROUND_SECONDS)
        for peer in able(peers, results):
            results[peer.name] |= peer.worker.ask("memory")
    return {"sizes": sizes, "peers": results, "losses_agree": agree}


def losses_agree(results: Results, dtype: str) -> float | None:
    """Returns the largest difference between charjax's and PyTorch's first losses; None where one cannot run.

    Raises:
        SystemExit: it is too large for times to mean anything.
    """
    ours, theirs = (results.get(peer, {}).get("losses") for peer in ("charjax", "torch"))
    if ours is None or theirs is None:
        return None
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if not difference <= LOSS_TOLERANCE[dtype]:
        raise SystemExit(f"the losses of charjax {ours} and PyTorch {theirs} differ by {difference}")
    return difference


def table(rows: list[Row], peers: list[str], peak: dict[str, float]) -> str:
    """Returns milliseconds per step, ratios to charjax, and its speed, memory and compile time."""
    head = ["H", "L", "B", "dtype", *(f"{peer} ms" for peer in peers)]
    head += [*(f"{name} / charjax" for name in COMPARED), "char/s", "of peak", "MB", "torch MB", "first step s"]
    return markdown(head, [_line(row, peers, peak) for row in rows])


def _line(row: Row, peers: list[str], peak: dict[str, float]) -> list[str]:
    sizes, ours = row["sizes"], row["peers"]["charjax"]
    cells = [str(sizes[name]) for name in (*GRID, "dtype")]
    for peer in peers:
        seconds = row["peers"][peer].get("median_seconds")
        cells.append(show(seconds and seconds * 1e3, ".1f"))
    cells += [show_ratio(time_ratio(row, others)) for others in COMPARED.values()]
    seconds = ours.get("median_seconds")
    cells.append(show(seconds and sizes["batch_size"] * SEQ_LEN / seconds))
    cells.append(show(seconds and training_flops(sizes) / seconds / 1e9 / peak[sizes["dtype"]], ".0%"))
    cells += [show(row["peers"].get(peer, {}).get("peak_megabytes")) for peer in ("charjax", "torch")]
    return [*cells, show(ours.get("first_step_seconds"), ".1f")]


def summary(rows: list[Row]) -> dict[str, Any]:
    """Returns geometric mean and least of the ratios, by dtype and peer."""
    dtypes = sorted({row["sizes"]["dtype"] for row in rows})
    return summarize(
        {
            f"{name} / charjax, {dtype}": [time_ratio(row, others) for row in rows if row["sizes"]["dtype"] == dtype]
            for dtype, (name, others) in itertools.product(dtypes, COMPARED.items())
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_parser("train_step", __doc__)
    add_results(parser)
    parser.add_argument("--quick", action="store_true", help="a few sizes and rounds, under two minutes")
    parser.add_argument("--huge-pages", action="store_true", help="give every peer huge pages, where Linux has them")
    parser.add_argument("--rounds", type=int, help="rounds per size (default 5, quick 3)")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="peers beside charjax (default all)")
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=DTYPES)
    add_axes(parser, GRID)
    arguments = parser.parse_args(argv)
    default = QUICK if arguments.quick else GRID
    axes = [getattr(arguments, name) or default[name] for name in GRID]
    others = ["flax", "torch"] if arguments.quick else list(PEERS)
    peers = list(dict.fromkeys(["charjax", *(others if arguments.peers is None else arguments.peers)]))
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    # A setting of glibc that any program can be started with.
    environment = os.environ | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if arguments.huge_pages else {})

    with Worker(environment) as judge:
        peak = {dtype: judge.ask("jax_training:peak", dtype=dtype)["gflops"] for dtype in arguments.dtypes}
    print("matrix-product peak, GFLOP/s:", {dtype: round(value) for dtype, value in peak.items()}, flush=True)
    rows: list[Row] = []
    for values in itertools.product(*axes, arguments.dtypes):
        sizes = dict(zip([*GRID, "dtype"], values, strict=True))
        rows.append(measure(sizes, peers, rounds, environment))
        print(table(rows[-1:], peers, peak).splitlines()[-1], flush=True)
    totals = summary(rows)
    print("\n" + "\n".join([table(rows, peers, peak), *summary_lines(totals)]))
    setting = {"peak_gflops": peak, "rounds": rounds, "huge_pages": arguments.huge_pages}
    print("written:", ResultsFile(arguments.results, "train_step", **setting, summary=totals, rows=rows).save())


if __name__ == "__main__":
    main()
