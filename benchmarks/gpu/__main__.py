"""Measures everything worth knowing on one GPU (or TPU), within eight minutes, from a bare checkout.

    python -m benchmarks.gpu            the whole run
    python -m benchmarks.gpu --tiny     a rehearsal of all stages on any machine

Three stages: every implementation of an LSTM layer against float64 on the device; the whole training step against
PyTorch's cuDNN, JAX's cuDNN, flax and a plain scan; generation against PyTorch. Peers are timed in turn, medians are
reported, and a peer that fails is reported with its words. Results are written after every point, so that a run that is
cut short leaves what it has; points that there was no time for are listed. Needs charjax's own requirements (without
tyro) and, for the comparison, PyTorch.
"""

import argparse
import contextlib
import importlib.util
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import machine
from benchmarks.gpu import report
from benchmarks.gpu.correctness import run_correctness
from benchmarks.gpu.generation import run_generation
from benchmarks.gpu.plan import Clock, Plan, tiny_plan, whole_plan
from benchmarks.gpu.results import Results, nvidia_smi
from benchmarks.gpu.run import Run
from benchmarks.gpu.train_step import run_everyone, run_important, run_rest
from benchmarks.gpu.worker import Worker

# A stage, and the share of all time at which it must have made room for the next.
Stage = tuple[str, Callable[[Run, float], None], float]
STAGES: tuple[Stage, ...] = (
    ("correctness", run_correctness, 0.24),
    ("train_step", run_important, 0.54),
    ("generation", run_generation, 0.71),
    ("train_step_peers", run_everyone, 0.92),
    ("train_step_rest", run_rest, 1.0),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark: -> 1 where a stage failed or a check found a difference, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="rehearse every stage at sizes that any machine can run")
    parser.add_argument("--seconds", type=float, help=f"time for the whole run (default {Plan.seconds:.0f})")
    parser.add_argument("--without-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder to write to")
    arguments = parser.parse_args(argv)
    plan = tiny_plan() if arguments.tiny else whole_plan()
    clock = Clock(arguments.seconds or plan.seconds)
    console = Console(width=None if Console().is_terminal else 180)
    with tempfile.TemporaryDirectory() as compiled, contextlib.ExitStack() as started:
        workers = {"jax": Worker("jax", Path(compiled))}
        if importlib.util.find_spec("torch") and not arguments.without_torch:
            workers["torch"] = Worker("torch", Path(compiled))
        for worker in workers.values():
            started.callback(worker.close)
        run = _start(plan, clock, workers, arguments.results, console)
        failed = [name for name, stage, share in STAGES if not _try(run, name, stage, share)]
    results = run.results
    results.content |= {"nvidia_smi_after": nvidia_smi(), "seconds": clock.elapsed()}
    results.content["summary"] = report.summary(results.content)
    results.save()
    report.show(results.content, console)
    console.print("written:", str(results.path))
    differ = [row for row in report.rows(results.content, "correctness") if not row.get("agrees", True)]
    peers = [result for row in report.training_rows(results.content) for result in row["peers"].values()]
    apart = any(not result.get("losses_agree", True) for result in peers)
    return 1 if failed or differ or apart else 0


def _start(plan: Plan, clock: Clock, workers: dict[str, Worker], folder: Path, console: Console) -> Run:
    """Asks each side what it runs on; PyTorch stays only where it has the same kind of device.

    Raises:
        SystemExit: JAX does not start, or has no device worth measuring.
    """
    about = {side: worker.ask(120.0, do="describe") for side, worker in workers.items()}
    if "platform" not in about["jax"]:
        raise SystemExit(f"JAX does not start: {about['jax']}")
    platform = about["jax"]["platform"]
    if platform == "cpu" and plan != tiny_plan():
        raise SystemExit("JAX sees neither a GPU nor a TPU here; --tiny rehearses the run on a processor")
    if "torch" in workers and about["torch"].get("platform") != {"gpu": "cuda", "cpu": "cpu"}.get(platform):
        workers.pop("torch").close()
    console.print(f"{about['jax']['device']} ({platform}); PyTorch: {'yes' if 'torch' in workers else 'no'}")
    results = Results(folder, about["jax"]["device"], platform=platform, about=about, limit_seconds=clock.limit)
    return Run(plan, clock, results, workers, about, lambda line: console.print(f"{clock.elapsed():5.0f} s  {line}"))


def _try(run: Run, name: str, stage: Callable[[Run, float], None], share: float) -> bool:
    """Runs one stage: a failure is written down and shown, and the stages after it still run."""
    try:
        stage(run, share)
    except Exception as error:  # noqa: BLE001 -- time on the device is dear: what can still be measured is
        run.results.stage(name)["failed"] = f"{type(error).__name__}: {error}"
        run.say(traceback.format_exc())
        return False
    finally:
        run.results.save()
    return True


if __name__ == "__main__":
    raise SystemExit(main())
