"""How cost grows: characters per second against each size, and loading against the length of the text.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --quick
    python -m benchmarks.scaling --loading      texts only

Each axis varies one size around the middle (H = 256, L = 2, B = 64, T = 100, ASCII); texts of 1 MB to 1 GB are made on
the spot. Writes JSON and, where matplotlib is installed, a plot beside it.
"""

import importlib.util
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.contest import Contest, Peer
from benchmarks.common.options import add_results, make_parser
from benchmarks.common.problem import TEXT
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import Worker

MIDDLE = {"hidden_dim": 256, "hidden_layers": 2, "batch_size": 64, "seq_len": 100, "vocab_size": 128, "devices": 0}
AXES = {
    "hidden_dim": [64, 128, 256, 512, 1024],
    "hidden_layers": [1, 2, 3, 4],
    "batch_size": [8, 16, 32, 64, 128, 256],
    "seq_len": [25, 50, 100, 200, 400],
    "vocab_size": [64, 128, 256, 1024, 4096],
    "devices": [1, 2, 4, 8],
}
TEXT_MEGABYTES = [1, 10, 100, 1000]
QUICK = {"hidden_dim": [64, 128], "hidden_layers": [1], "devices": [1, 2]}
ROUNDS, ROUND_SECONDS = 5, 0.5


def measure_point(sizes: dict[str, int]) -> dict[str, Any]:
    """Trains in a process of its own: returns its speed and its first step's seconds, or why it cannot run."""
    forced = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={sizes['devices']}"} if sizes["devices"] else {}
    with Worker(os.environ | forced) as worker:
        peers = [Peer("charjax", worker, "jax_training:charjax", {"all_cores": True})]
        contest = Contest()
        results = contest.set_up(peers, sizes=sizes, dtype="float32", losses=2)
        contest.time_steps(peers, results, rounds=ROUNDS, least_seconds=ROUND_SECONDS)
    result = results["charjax"]
    if "cannot_run" in result:
        return result
    speed = sizes["batch_size"] * sizes["seq_len"] / statistics.median(result["seconds"])
    return {**{name: result[name] for name in ("first_step_seconds", "devices")}, "chars_per_second": speed}


def measure_axes(axes: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Measures the speed along each axis."""
    rows = []
    for axis, values in axes.items():
        for value in values:
            rows.append({"axis": axis, "value": value, **measure_point({**MIDDLE, axis: value})})
            print(rows[-1], flush=True)
    return rows


def measure_loading(megabytes: list[int]) -> list[dict[str, Any]]:
    """Measures time and memory until the first loss is known, for texts of so many megabytes."""
    rows = []
    piece = TEXT.read_bytes()[:1_000_000]
    for size in megabytes:
        with tempfile.NamedTemporaryFile() as file, Worker() as worker:
            for _ in range(size):
                file.write(piece)
            file.flush()
            rows.append({"megabytes": size, **worker.ask("fit:start", text=file.name)})
        print(rows[-1], flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws one small chart per axis, both scales logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415 -- only this function needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, charts = plt.subplots(1, len(axes), figsize=(3 * len(axes), 3), sharey=True, squeeze=False)
    for chart, axis in zip(charts[0], axes, strict=True):
        measured = [row for row in rows if row["axis"] == axis and "cannot_run" not in row]
        points = [(row["value"], row["chars_per_second"]) for row in measured]
        chart.loglog(*zip(*points, strict=True), "o-")
        chart.set_xlabel(axis)
        # Only the measured values: on short axes matplotlib's own labels would overlap.
        chart.set_xticks([value for value, _ in points], [str(value) for value, _ in points])
        chart.set_xticks([], minor=True)
        chart.grid(visible=True, which="both", alpha=0.3)
    charts[0][0].set_ylabel("characters/s")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_parser("scaling", __doc__)
    add_results(parser)
    parser.add_argument("--quick", action="store_true", help="a few points, and texts up to 10 MB")
    parser.add_argument("--loading", action="store_true", help="only how long texts take to load")
    arguments = parser.parse_args(argv)
    loading = measure_loading(TEXT_MEGABYTES[:2] if arguments.quick else TEXT_MEGABYTES)
    rows = [] if arguments.loading else measure_axes(QUICK if arguments.quick else AXES)
    path = ResultsFile(arguments.results, "scaling", middle=MIDDLE, rows=rows, loading=loading).save()
    print("written:", path)
    if not rows:
        return
    if importlib.util.find_spec("matplotlib"):
        plot(rows, path.with_suffix(".png"))
        print("plotted:", path.with_suffix(".png"))
    else:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
