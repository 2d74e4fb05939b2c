"""How cost grows: characters per second against each size, and loading against the length of the text.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --quick

Each axis varies one size around the middle (H = 256, L = 2, B = 64, T = 100, ASCII); texts of 1 MB to 1 GB are made on
the spot. Writes JSON and, where matplotlib is installed, a plot beside it.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine

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

# Run in a process of its own, whose devices and memory are its own.
TRAIN = """
import json, os, sys, time
point = json.loads(sys.argv[1])
if point["devices"]:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={point['devices']}"
from charjax.sharding import make_mesh, make_training_mesh, put_streams, use_all_cores
use_all_cores()
import jax, numpy as np
from charjax import CharLSTM, TrainConfig, init_train_state, make_optimizer, make_streams, make_train_step
B, T, V = point["batch_size"], point["seq_len"], point["vocab_size"]
mesh = make_mesh() if point["devices"] else make_training_mesh(B)
ids = np.random.default_rng(0).integers(0, V, B * T * 4 + 1).astype(np.uint8 if V <= 256 else np.uint16)
streams = put_streams(make_streams(ids, batch_size=B, seq_len=T), mesh)
model = CharLSTM(V, hidden_dim=point["hidden_dim"], hidden_layers=point["hidden_layers"])
optimizer = make_optimizer(TrainConfig(), 1000)
state = init_train_state(jax.random.key(0), model, optimizer, batch_size=B, mesh=mesh)
step = make_train_step(model, optimizer, seq_len=T, mesh=mesh)
def run(state, steps):
    start = time.perf_counter()
    state, metrics = step(state, streams, steps)
    chars = int(metrics.chars)
    return state, time.perf_counter() - start, chars
state, compiling, _ = run(state, 1)
state, once, _ = run(state, 1)
steps = max(1, round(0.5 / once))
speeds = []
for _ in range(5):
    state, seconds, chars = run(state, steps)
    speeds.append(chars / seconds)
print(json.dumps({"first_step_seconds": compiling, "chars_per_second": sorted(speeds)[2], "devices": mesh.size}))
"""

LOAD = """
import json, resource, sys, time
start = time.perf_counter()
from charjax.sharding import use_all_cores
use_all_cores()
from charjax import CharLSTM, Corpus, fit
from charjax.report.progress import NullReporter
class Started(Exception): ...
class Reporter(NullReporter):
    def update(self, step, loss):
        if loss == loss:
            raise Started
imported = time.perf_counter()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = Corpus.from_file(sys.argv[1])
read = time.perf_counter()
try:
    fit(CharLSTM(corpus.vocab.size, hidden_dim=128, hidden_layers=1), corpus, batch_size=64, reporter=Reporter())
except Started:
    trained = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
seconds = {"read_seconds": read - imported, "training_after_seconds": trained - start}
print(json.dumps({**seconds, "peak_megabytes": peak / 1024}))
"""


def run(program: str, argument: str) -> dict[str, Any]:
    """Runs a program in a process of its own: -> what it prints, or why it failed."""
    done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"cannot_run": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure_axes(axes: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Speed along each axis."""
    rows = []
    for axis, values in axes.items():
        for value in values:
            row = {"axis": axis, "value": value, **run(TRAIN, json.dumps({**MIDDLE, axis: value}))}
            rows.append(row)
            print(row, flush=True)
    return rows


def measure_loading(megabytes: list[int]) -> list[dict[str, Any]]:
    """Time and memory until the first loss is known, for texts of so many megabytes."""
    rows = []
    text = (Path(__file__).parent.parent / "data_files" / "shakespeare.txt").read_bytes()[:1_000_000]
    for size in megabytes:
        with tempfile.NamedTemporaryFile() as file:
            for _ in range(size):
                file.write(text)
            file.flush()
            rows.append({"megabytes": size, **run(LOAD, file.name)})
        print(rows[-1], flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One small chart per axis, both scales logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415 -- the one thing here that needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, charts = plt.subplots(1, len(axes), figsize=(3 * len(axes), 3), sharey=True, squeeze=False)
    for chart, axis in zip(charts[0], axes, strict=True):
        measured = [row for row in rows if row["axis"] == axis and "cannot_run" not in row]
        points = [(row["value"], row["chars_per_second"]) for row in measured]
        chart.loglog(*zip(*points, strict=True), "o-")
        chart.set_xlabel(axis)
        # The values measured: on short axes, matplotlib's own labels would run into each other.
        chart.set_xticks([value for value, _ in points], [str(value) for value, _ in points])
        chart.set_xticks([], minor=True)
        chart.grid(visible=True, which="both", alpha=0.3)
    charts[0][0].set_ylabel("characters/s")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few points, and texts up to 10 MB")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    loading = measure_loading(TEXT_MEGABYTES[:2] if arguments.quick else TEXT_MEGABYTES)
    rows = measure_axes(QUICK if arguments.quick else AXES)
    path = machine.save("scaling", {"middle": MIDDLE, "rows": rows, "loading": loading}, arguments.results)
    print("written:", path)
    if importlib.util.find_spec("matplotlib"):
        plot(rows, path.with_suffix(".png"))
        print("plotted:", path.with_suffix(".png"))
    else:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
