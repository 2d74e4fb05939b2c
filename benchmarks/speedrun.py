"""How long training takes from process start to a validation loss, compilation included, beside a twin in PyTorch.

    python -m benchmarks.speedrun --text FILE                                 every target, seeds 0 to 2
    python -m benchmarks.speedrun --text FILE --targets 1.88 1.6 --nanogpt FOLDER

For each target, `charjax train` runs the recipe of benchmarks/common/recipes.py, and so does a PyTorch script with the
same model (benchmarks/peers/torch_speedrun.py), in turn, seed by seed, each in a process of its own. The clock starts
before the process does, and a loss counts when the process has printed it. Training goes on to the recipe's end. The
recipes are for tinyshakespeare (1,115,394 characters), of which the last tenth is for validation.

The best model of each run is measured in two ways, after the clock has stopped: "carried", the exact loss, with the
state carried through the text; "windows", as nanoGPT measures: the mean over 200 batches of 64 windows of 256
characters, which begin anywhere, each from a zero state. The windows are the same for all models.

charjax compiles everything in each run, in an empty cache, unless --warm keeps programs from run to run. PyTorch
multiplies in the format and lets its threads wait in the way that is faster for the recipe: a few steps are timed in
each before. (By default its threads spin while they wait, which costs many times a step wherever anything else runs.)

With --nanogpt FOLDER, a clone of github.com/karpathy/nanoGPT, its train.py runs once with the settings that its README
has for CPUs, and the table shows the last loss that it has printed, by its own estimate, at charjax's time to each
target. It evaluates every 50 steps instead of every 250, so that there is one.
"""

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.options import add_results, make_parser
from benchmarks.common.recipes import RECIPES, TINY, as_flags
from benchmarks.common.report import markdown, paired, show, show_ratio
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import ROOT, Worker

PEERS = ("charjax", "torch")
# PyTorch's format, and how its threads wait.
VARIANTS = tuple(itertools.product(("float32", "bfloat16"), ("default", "passive")))
STEPS_TO_CHOOSE = 10
NANOGPT = [
    "train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20",
    "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128",
    "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0", "--eval_interval=50",
]  # fmt: skip
Line = tuple[float, str]
"""What a process printed, and the seconds since it was started."""


def run(
    command: Sequence[str], *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, most: float | None = None
) -> list[Line]:
    """Runs a command to its end, or stops it after `most` seconds, and returns the lines of both its outputs.

    Raises:
        SystemExit: it fails.
    """
    lines: list[Line] = []
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment
    )
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip()))
            if most is not None and lines[-1][0] > most:
                process.kill()
                return lines
    if process.returncode:
        raise SystemExit(
            "\n".join([f"{command[0]} ended with {process.returncode}:", *(text for _, text in lines[-5:])])
        )
    return lines


def train_charjax(text: Path, options: dict[str, Any], out: Path, cache: Path) -> dict[str, Any]:
    """Trains with `charjax train`; programs are compiled into `cache`."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_LOG_COMPILES": "1"}
    flags = as_flags({**options, "sample_length": 0})
    command = [sys.executable, "-m", "charjax", "train", str(text), "--out", str(out), *flags]
    lines = run(command, environment=environment)
    compiling = [re.search(r"Finished XLA compilation of .* in ([\d.e+-]+) sec", line) for _, line in lines]
    seconds = sum(float(found[1]) for found in compiling if found)
    return finished(lines, out) | {"compile_seconds": seconds}


def torch_environment(waiting: str) -> dict[str, str]:
    """Returns the environment of a process whose threads wait by default, or without spinning: "passive"."""
    return os.environ | ({"OMP_WAIT_POLICY": "passive"} if waiting == "passive" else {})


def train_torch(text: Path, options: dict[str, Any], out: Path, variant: str) -> dict[str, Any]:
    """Trains the twin."""
    dtype, waiting = variant.split()
    given = ["--out", str(out), "--dtype", dtype, "--options", json.dumps(options)]
    command = [sys.executable, "-m", "benchmarks.peers.torch_speedrun", str(text), *given]
    return finished(run(command, environment=torch_environment(waiting)), out)


def finished(lines: list[Line], out: Path) -> dict[str, Any]:
    """Returns what a run has printed and left: its evaluations, [seconds, step, loss], and the speed of its steps."""
    printed = [seconds for seconds, line in lines if re.search(r"\bval \d", line)]
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in logged]
    taken = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    speeds = [(row["chars_per_second"], count) for row, count in zip(logged, taken, strict=True)]
    return {
        "evaluations": [[s, row["step"], row["val_loss"]] for s, row in zip(printed, logged, strict=True)],
        "whole_seconds": lines[-1][0],
        "chars_per_second": sum(n for speed, n in speeds if speed) / sum(n / speed for speed, n in speeds if speed),
        "log": [[seconds, line] for seconds, line in lines if "jax._src" not in line],
    }


def reached(evaluations: list[list[float]], target: float) -> list[float] | None:
    """Returns the first evaluation at or below a loss."""
    return next((evaluation for evaluation in evaluations if evaluation[2] <= target), None)


def train_nanogpt(clone: Path, text: Path, most: float) -> list[list[float]]:
    """Trains nanoGPT on a text in a copy of its folder -> [seconds, step, loss by its own estimate]."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git", "*.bin", "*.pkl"))
        data = copy / "data" / "shakespeare_char"
        shutil.copyfile(text, data / "input.txt")
        # The script imports it to download the text, which is there.
        (data / "requests.py").touch()
        run([sys.executable, "prepare.py"], cwd=data)
        return nanogpt_losses(run([sys.executable, "-u", *NANOGPT], cwd=copy, most=most))


def last_before(seconds: list[float | None], evaluations: list[list[float]]) -> float | None:
    """Returns the last loss that was printed by the median of some times."""
    known = [value for value in seconds if value is not None]
    printed = [loss for at, _, loss in evaluations if known and at <= statistics.median(known)]
    return printed[-1] if printed else None


def nanogpt_losses(lines: list[Line]) -> list[list[float]]:
    """Returns the evaluations that nanoGPT's train.py has printed."""
    found = [(seconds, re.match(r"step (\d+): .*val loss ([\d.]+)", line)) for seconds, line in lines]
    return [[seconds, int(match[1]), float(match[2])] for seconds, match in found if match]


class Speedrun:
    """The runs of one benchmark.

    Attributes:
        text: the text.
        peers: PEERS or some of them.
        folder: for the runs.
        warm: keep compiled programs.
    """

    def __init__(self, text: Path, peers: Sequence[str], folder: Path, *, warm: bool) -> None:
        self.text, self.peers, self.folder, self.warm = text, peers, folder, warm
        self._number = itertools.count()

    def measure(self, target: float, recipe: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
        """Runs a recipe for every seed, the peers in turn."""
        variants = self.step_seconds(recipe) if "torch" in self.peers else {}
        row: dict[str, Any] = {"target": target, "recipe": recipe, "torch_step_seconds": variants, "runs": []}
        for seed in seeds:
            row["runs"].append({"seed": seed})
            for peer in self.peers:
                row["runs"][-1][peer] = result = self.train(peer, {**recipe, "seed": seed}, variants)
                first = reached(result["evaluations"], target)
                result["seconds"], result["step"] = first[:2] if first else (None, None)
                print(f"{target} {peer} seed {seed}: {described(result)}", flush=True)
        return row

    def step_seconds(self, recipe: dict[str, Any]) -> dict[str, float]:
        """Returns PyTorch's seconds per step in each variant that this CPU can run."""
        found = {}
        request = {"text": str(self.text), "options": recipe, "steps": STEPS_TO_CHOOSE}
        for dtype, waiting in VARIANTS:
            with Worker(torch_environment(waiting)) as worker:
                answer = worker.ask("torch_speedrun:time_steps", dtype=dtype, **request)
            if "seconds" in answer:
                found[f"{dtype} {waiting}"] = answer["seconds"]
        if not found:
            raise SystemExit(f"PyTorch cannot run the recipe: {answer['cannot_run']}")
        return found

    def train(self, peer: str, options: dict[str, Any], variants: dict[str, float]) -> dict[str, Any]:
        """Trains a peer, then measures its model in both ways."""
        out, variant = self.folder / f"{next(self._number)}", ""
        if peer == "torch":
            variant = min(variants, key=lambda name: variants[name])
            result = train_torch(self.text, options, out, variant)
        else:
            cache = self.folder / ("cache" if self.warm else f"{out.name}-cache")
            result = train_charjax(self.text, options, out, cache)
        with Worker() as judge:
            answer = judge.ask("judge:losses", folder=str(out), text=str(self.text), dtype=variant.partition(" ")[0])
        if "cannot_run" in answer:
            raise SystemExit(f"the model of {peer} cannot be measured: {answer['cannot_run']}")
        return {"variant": variant, **answer, **result}


def described(result: dict[str, Any]) -> str:
    """Returns a run in one line."""
    when = "not reached" if result["seconds"] is None else f"{result['seconds']:.2f} s, step {result['step']}"
    rest = f"ends after {result['whole_seconds']:.1f} s; {result['chars_per_second']:,.0f} char/s"
    return f"{when}; {rest}; carried {result['carried']:.4f}, windows {result['windows']:.4f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Returns seconds to each target, ratios of time and of the steps' speed, losses and compilation."""
    head = ["target", "recipe", "charjax s", "torch s", "time ratio by seed", "time ratio", "step ratio"]
    head += ["carried", "torch carried", "windows", "torch windows", "characters", "char/s", "torch char/s"]
    return markdown([*head, "compile s", "nanoGPT then"], [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> list[str]:
    ours, theirs = ([run[peer] for run in row["runs"] if peer in run] for peer in PEERS)
    times = [(b["seconds"], a["seconds"]) for a, b in zip(ours, theirs, strict=False) if a["seconds"] and b["seconds"]]
    speeds = [(a["chars_per_second"], b["chars_per_second"]) for a, b in zip(ours, theirs, strict=False)]
    window = row["recipe"]["batch_size"] * row["recipe"]["seq_len"]
    cells = [str(row["target"]), " ".join(f"{name} {value}" for name, value in row["recipe"].items())]
    cells += [_spread(runs, "seconds", ".2f") for runs in (ours, theirs)]
    cells += [" ".join(f"{b / a:.2f}" for b, a in times) or "-", _ratio(times), _ratio(speeds)]
    cells += [_spread(runs, way, ".4f") for way in ("carried", "windows") for runs in (ours, theirs)]
    cells.append(_spread([{"characters": run["step"] and run["step"] * window} for run in ours], "characters", ",.0f"))
    cells += [_spread(runs, "chars_per_second", ",.0f") for runs in (ours, theirs)]
    return [*cells, _spread(ours, "compile_seconds", ".2f"), show(row.get("nanogpt_loss"), ".4f")]


def _spread(runs: list[dict[str, Any]], name: str, spec: str) -> str:
    """Returns the median with the least and the largest; "-" unless every run has the figure."""
    values = [run[name] for run in runs]
    if not values or None in values:
        return "-"
    return f"{statistics.median(values):{spec}} ({min(values):{spec}}-{max(values):{spec}})"


def _ratio(pairs: list[tuple[float, float]]) -> str:
    return show_ratio(paired(*zip(*pairs, strict=True)) if pairs else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_parser("speedrun", __doc__)
    add_results(parser)
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare, or another text in ASCII")
    parser.add_argument("--targets", nargs="+", type=float, choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    parser.add_argument("--warm", action="store_true", help="keep compiled programs; a target's first run compiles")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT, to be run beside")
    parser.add_argument("--nanogpt-seconds", type=float, default=150, help="stop nanoGPT after this (default 150)")
    parser.add_argument("--tiny", action="store_true", help="rehearse with a small recipe")
    arguments = parser.parse_args(argv)
    text, recipes = arguments.text.resolve(), {name: RECIPES[name] for name in arguments.targets}
    file = ResultsFile(arguments.results, "speedrun", text_bytes=text.stat().st_size, warm=arguments.warm, rows=[])
    rows = file.content["rows"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        speedrun = Speedrun(text, PEERS[:1] if arguments.alone else PEERS, Path(folder), warm=arguments.warm)
        for target, recipe in (TINY if arguments.tiny else recipes).items():
            rows.append(speedrun.measure(target, recipe, arguments.seeds))
            file.save()
    if arguments.nanogpt:
        file.content["nanogpt"] = found = train_nanogpt(arguments.nanogpt, text, arguments.nanogpt_seconds)
        for row in rows:
            row["nanogpt_loss"] = last_before([run["charjax"]["seconds"] for run in row["runs"]], found)
    print("\n" + table(rows))
    print("written:", file.save())


if __name__ == "__main__":
    main()
