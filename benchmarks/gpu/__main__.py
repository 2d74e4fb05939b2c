"""Measures one GPU (or TPU) within eight minutes, from a bare checkout.

    python -m benchmarks.gpu            the whole run
    python -m benchmarks.gpu --tiny     a rehearsal of all stages on any machine

Questions: does every implementation of an LSTM layer match float64 on the device, and does every decoder; how fast is
the whole training step beside PyTorch's cuDNN, JAX's cuDNN, flax and a plain scan; how fast is generation beside
PyTorch; where does the time go; what does a user see in the first minute of a training. Peers are timed in turn,
medians are reported, and a peer that fails is reported with its message. The file is written after every point, so that
a run that is cut short leaves what it has; points that there was no time for are listed. Needs charjax's requirements
(without tyro) and, for the comparison, PyTorch. `first_contact.sh` runs the stages one group at a time.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.util
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Sequence

from benchmarks.common.contest import Contest
from benchmarks.common.machine import nvidia_smi
from benchmarks.common.options import add_results, make_parser
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import Worker
from benchmarks.gpu import report
from benchmarks.gpu.diagnosis import run_limits, run_profile, run_sampling, run_training, run_variants
from benchmarks.gpu.plan import Clock, Plan, tiny_plan, whole_plan
from benchmarks.gpu.stages import Run, run_correctness, run_everyone, run_generation, run_important, run_rest

# Each stage, and its share of the time.
STAGES: dict[str, tuple[Callable[[Run, float], None], float]] = {
    "limits": (run_limits, 0.03),
    "correctness": (run_correctness, 0.12),
    "sampling": (run_sampling, 0.05),
    "train_step": (run_important, 0.25),
    "generation": (run_generation, 0.15),
    "profile": (run_profile, 0.08),
    "variants": (run_variants, 0.15),
    "train_step_peers": (run_everyone, 0.07),
    "train_step_rest": (run_rest, 0.05),
    "training": (run_training, 0.05),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 where a stage or a check failed, or a check found a difference, else 0."""
    arguments = _parse(argv)
    plan = tiny_plan() if arguments.tiny else whole_plan()
    with tempfile.TemporaryDirectory() as compiled, contextlib.ExitStack() as started:
        workers = {
            side: started.enter_context(worker)
            for side, worker in make_workers(compiled).items()
            if side == "jax" or (importlib.util.find_spec("torch") and not arguments.without_torch)
        }
        run = _start(plan, workers, arguments, functools.partial(make_worker, compiled))
        failed = [name for name in arguments.stages if not _try(run, name, arguments.stages)]
    content = run.file.content
    content |= {"nvidia_smi_after": nvidia_smi(), "seconds": run.clock.elapsed(), "summary": report.summary(content)}
    print(report.full_text(content))
    print("written:", run.file.save())
    checks = report.rows(content, "correctness") + report.rows(content, "sampling")
    wrong = [row for row in checks if not (row.get("agrees") or row.get("refused"))]
    peers = [result for row in report.training_rows(content) for result in row["peers"].values()]
    apart = any(not result.get("losses_agree", True) for result in peers)
    return 1 if failed or wrong or apart else 0


def make_workers(compiled: str) -> dict[str, Worker]:
    """Returns the processes for JAX and for PyTorch; `compiled` is a folder where JAX keeps compiled programs."""
    # PyTorch's process makes its weights with JAX, which must not hold the device there.
    return {"jax": make_worker(compiled, {}), "torch": make_worker(compiled, {"JAX_PLATFORMS": "cpu"})}


def make_worker(compiled: str, more: dict[str, str]) -> Worker:
    """Returns a process for JAX, with `more` in its environment."""
    cache = {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    # Two processes hold memory of the device at the same time. The user's own setting wins.
    return Worker(cache | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"} | os.environ | more)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("gpu", __doc__)
    add_results(parser)
    parser.add_argument("--tiny", action="store_true", help="rehearse every stage at sizes that any machine can run")
    parser.add_argument("--seconds", type=float, help=f"time for the whole run (default {Plan.seconds:.0f})")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="all by default")
    parser.add_argument("--without-torch", action="store_true", help="leave PyTorch out")
    return parser.parse_args(argv)


def _start(
    plan: Plan,
    workers: dict[str, Worker],
    arguments: argparse.Namespace,
    make_worker: Callable[[dict[str, str]], Worker],
) -> Run:
    """Asks each side what it runs on; PyTorch stays only where it has the same kind of device.

    Raises:
        SystemExit: JAX does not start, or has no device worth measuring.
    """
    describe = {"jax": "jax_training:describe", "torch": "torch_device:describe"}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = {side: pool.submit(worker.ask, describe[side], timeout=120.0) for side, worker in workers.items()}
    about = {side: answer.result() for side, answer in asked.items()}
    if "platform" not in about["jax"]:
        raise SystemExit(f"JAX does not start: {about['jax']['cannot_run']}")
    platform, device = about["jax"]["platform"], about["jax"]["device"]
    if platform == "cpu" and not arguments.tiny:
        raise SystemExit("JAX sees no GPU or TPU here; rehearse the run on the CPU with --tiny")
    if "torch" in workers and about["torch"].get("platform") != {"gpu": "cuda", "cpu": "cpu"}.get(platform):
        workers.pop("torch").close()
    print(f"{device} ({platform}); PyTorch: {'yes' if 'torch' in workers else 'no'}", flush=True)
    clock = Clock(arguments.seconds or plan.seconds)
    suffix = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")
    # Runs of some stages may follow one another within a minute.
    name = "gpu" if arguments.stages == list(STAGES) else f"gpu-{arguments.stages[0]}"
    file = ResultsFile(
        arguments.results, name, suffix, platform=platform, about=about, limit_seconds=clock.limit,
        nvidia_smi=nvidia_smi(), stages={},
    )  # fmt: skip
    file.save()

    def say(line: str) -> None:
        print(f"{clock.elapsed():5.0f} s  {line}", flush=True)

    return Run(plan, clock, file, workers, about, say, Contest(clock.timeout), make_worker)


def _try(run: Run, name: str, chosen: Sequence[str]) -> bool:
    """Runs one stage of those chosen; a failure is written down and shown, and the stages after it still run."""
    until = sum(STAGES[each][1] for each in chosen[: chosen.index(name) + 1])
    try:
        STAGES[name][0](run, until / sum(STAGES[each][1] for each in chosen))
    except Exception as error:  # noqa: BLE001 -- time on the device is scarce: measure what can still be measured
        run.stage(name)["failed"] = f"{type(error).__name__}: {error}"
        run.say(traceback.format_exc())
        return False
    finally:
        run.file.save()
    return True


if __name__ == "__main__":
    raise SystemExit(main())
