"""What saving in the background costs: training with checkpoints against training without, in turn.

    python -m benchmarks.saving
    python -m benchmarks.saving --hidden-dim 128 --batch-size 32 --rounds 3

Two trainings (`fit`) of H = 512, L = 2, B = 64, T = 100 take turns of 20 steps, each in a process of its own. One of
them saves a checkpoint at the beginning of each turn and writes it in the background. A ratio is that of a round's
two speeds. What a save does after its turn is not in that turn's time: turns should be longer than saves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from charjax.runs.checkpoint import read_header

TEXT = Path(__file__).parent.parent / "data_files" / "shakespeare.txt"
# Turns that compile and settle, and count for nothing.
WARM_UP = 2
TARGET = 0.95

# Trains for a turn whenever a line comes, and answers with the seconds that it took.
TURNS = """
import json, sys, time
point, out = json.loads(sys.argv[1]), json.loads(sys.argv[2])
from charjax.sharding import use_all_cores
use_all_cores()
import jax  # noqa: E402
from charjax import CharLSTM, Corpus, fit
from charjax.report.progress import NullReporter
every = point["every"]
class Reporter(NullReporter):
    def update(self, step, loss):
        if step % every == 0:
            jax.block_until_ready(jax.live_arrays())
            print(json.dumps(time.perf_counter() - self.began), flush=True)
            self.wait()
    def wait(self):
        if not sys.stdin.readline():
            sys.exit()
        self.began = time.perf_counter()
memory_mb = point.get("memory_mb")
corpus = Corpus.from_file(point["text"], memory_mb=memory_mb)
reporter = Reporter()
reporter.wait()
fit(
    CharLSTM(corpus.vocab.size, hidden_dim=point["hidden_dim"], hidden_layers=point["hidden_layers"]),
    corpus, out=out, reporter=reporter, batch_size=point["batch_size"], seq_len=point["seq_len"],
    epochs=1000, eval_every=10**9, checkpoint_every=every, text_memory_mb=memory_mb,
)
"""


class Training:
    """A training in a process of its own, that goes on when it is asked to."""

    def __init__(
        self, point: dict[str, Any], out: Path | None = None, *, core: int | None = None, devices: int | None = None
    ) -> None:
        """Starts it.

        Args:
            point: its sizes, text, and steps per turn.
            out: run folder.
            core: the one that it may use; by default all.
            devices: that JAX makes of the processor; by default one per core.
        """
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        forced = {} if devices is None else {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        self._process = subprocess.Popen(
            [*pinned, sys.executable, "-c", TURNS, json.dumps(point), json.dumps(out and str(out))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **forced},
        )  # fmt: skip

    def take_turn(self) -> float:
        """Trains for one turn: -> its seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a training ended; what it printed says why")
        return float(json.loads(answer))

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()


def measure(point: dict[str, Any], rounds: int, folder: Path) -> list[dict[str, float]]:
    """Seconds per turn of both trainings, round by round."""
    return in_turn({"without": Training(point, None), "saving": Training(point, folder / "run")}, rounds)


def in_turn(trainings: dict[str, Training], rounds: int) -> list[dict[str, float]]:
    """Seconds per turn of trainings that take turns, round by round; ends them."""
    measured = []
    try:
        for number in range(-WARM_UP, rounds):
            # Each goes first in every other round.
            names = sorted(trainings, reverse=number % 2 == 0)
            seconds = {name: trainings[name].take_turn() for name in names}
            if number >= 0:
                measured.append(seconds)
                print({name: round(value, 3) for name, value in sorted(seconds.items())}, flush=True)
    finally:
        for training in trainings.values():
            training.close()
    return measured


def ratios(measured: list[dict[str, float]]) -> dict[str, float]:
    """The speed with checkpoints over that without: median, least and most of the rounds' own."""
    each = [seconds["without"] / seconds["saving"] for seconds in measured]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def megabytes(run: Path) -> float:
    """The size of the latest checkpoint on disk."""
    return sum(path.stat().st_size for path in read_header(run).path.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-dim", type=int, default=512)
    parser.add_argument("--hidden-layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=100)
    parser.add_argument("--every", type=int, default=20, help="steps from one checkpoint to the next")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoints go; by default the system's, for temporary files"
    )
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    names = ("hidden_dim", "hidden_layers", "batch_size", "seq_len", "every")
    point = {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as folder:
        measured = measure({**point, "text": str(arguments.text)}, arguments.rounds, Path(folder))
        size = megabytes(Path(folder) / "run")
    ratio = ratios(measured)
    content = {"sizes": point, "checkpoint_megabytes": size, "seconds": measured, "speed_saving_to_without": ratio}
    path = machine.save("saving", content, arguments.results)
    print(f"checkpoints of {size:.1f} MB every {point['every']} steps: {ratio['median']:.3f} of the speed without")
    print(f"({ratio['least']:.3f} to {ratio['most']:.3f}; to reach: {TARGET})")
    print("written:", path)


if __name__ == "__main__":
    main()
