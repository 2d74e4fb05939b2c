"""The stages of a run: correctness, the training step, generation."""

import concurrent.futures
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.common.contest import Contest, Peer
from benchmarks.common.problem import WINDOWS
from benchmarks.common.report import Row
from benchmarks.common.results import ResultsFile
from benchmarks.common.worker import Worker
from benchmarks.gpu.plan import Clock, Plan, Size
from benchmarks.train_step import LOSS_TOLERANCE, LOSSES
from charjax.host.cpu import available_cores

# As shares of an array's largest value; float32 with products in true float32.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
MOST_CHECKERS = 8
# None of them may take all of the device's memory, and trying tilings out would take longer than everything else.
CHECKER = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
# For reference or for CPUs: one size is enough to check them.
PORTABLE = ("flax", "scan", "custom_vjp", "native")
OURS = "charjax"
# Of PyTorch. Float32, true or TensorFloat-32, is slower everywhere, so it is measured only against everyone.
FORMATS = ("fp16", "bf16")
HOPPER = "mosaic_gpu"
GENERATION_LAYERS = 2


@dataclasses.dataclass
class Run:
    """One run of the benchmark.

    Attributes:
        plan: the sizes.
        clock: the time.
        file: the results; its "stages" have "rows" and, where time ran out, "not_run".
        workers: a process each for "jax" and, where PyTorch is there, "torch".
        about: what each process said of its device.
        say: prints a line of progress.
        contest: sets up and times the peers.
        make_worker: starts another process for "jax", given what to add to its environment.
    """

    plan: Plan
    clock: Clock
    file: ResultsFile
    workers: dict[str, Worker]
    about: dict[str, dict[str, Any]]
    say: Callable[[str], None]
    contest: Contest
    make_worker: Callable[[dict[str, str]], Worker]

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        return str(self.about["jax"]["platform"])

    def stage(self, name: str) -> dict[str, Any]:
        """Returns the part of the file that belongs to a stage."""
        return self.file.content["stages"].setdefault(name, {"rows": [], "not_run": []})

    def take(self, name: str, items: Iterable[dict[str, Any]], share: float, measure: Callable[..., Row]) -> None:
        """Measures the points that there is time for, and writes the file after each."""
        stage = self.stage(name)

        def take(item: dict[str, Any]) -> None:
            self.say(f"{name}: {', '.join(f'{key} {value}' for key, value in item.items())}")
            stage["rows"].append(measure(item))
            self.file.save()

        stage["not_run"] = self.clock.take(items, share, take)

    def measure(self, sizes: dict[str, Any], peers: Sequence[Peer], multiple: int, **request: Any) -> Row:
        """Sets peers up, times them in turn, and drops them; `multiple` is what their steps come in."""
        results = self.contest.set_up(peers, sizes=sizes, **request)
        self.contest.time_steps(
            peers, results, rounds=self.plan.rounds, least_seconds=self.plan.round_seconds, multiple=multiple
        )
        for worker in self.workers.values():
            worker.ask("drop", timeout=self.clock.timeout())
        return {"sizes": sizes, "peers": results}


def run_correctness(run: Run, share: float) -> None:
    """Checks outputs and gradients of two layers, several implementations at a time in processes of their own.

    The implementations that are made for the device come first.
    """
    stage = run.stage("correctness")
    stage["tolerance"] = TOLERANCE
    names = sorted(run.about["jax"]["implementations"], key=lambda name: name in PORTABLE)
    waiting = [
        {"implementation": name, "dtype": dtype, "hidden_dim": hidden, "batch_size": batch, "seq_len": time}
        for (hidden, batch, time), dtype, name in itertools.product(run.plan.checks, ("bfloat16", "float32"), names)
        if (hidden, batch, time) == run.plan.checks[0] or name not in PORTABLE
    ]
    lock = threading.Lock()

    def work() -> None:
        with run.make_worker(CHECKER) as worker:
            while run.clock.elapsed() < share * run.clock.limit:
                with lock:
                    if not waiting:
                        return
                    item = waiting.pop(0)
                row = _check(run, worker, item)
                with lock:
                    run.say(f"correctness: {', '.join(f'{key} {value}' for key, value in row.items())}")
                    stage["rows"].append(row)
                    run.file.save()

    count = max(1, min(MOST_CHECKERS, available_cores() // 2))
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work) for _ in range(count)]:
            done.result()
    stage["not_run"] = waiting


def _check(run: Run, worker: Worker, item: dict[str, Any]) -> Row:
    rows = run.stage("correctness")["rows"]
    hung = [row for row in rows if "hung" in row and row["implementation"] == item["implementation"]]
    if hung:
        return {**item, "cannot_run": f"not tried again after: {hung[0]['cannot_run']}"}
    answer = worker.ask("layer_check:check", timeout=run.clock.timeout(), **item)
    if "outputs" in answer:
        answer["agrees"] = max(answer["outputs"], answer["gradients"]) <= TOLERANCE[item["dtype"]]
    return {**item, **answer}


def run_important(run: Run, share: float) -> None:
    """Measures the important training steps, beside PyTorch."""
    _train(run, "train_step", run.plan.important, against_torch, share)


def run_everyone(run: Run, share: float) -> None:
    """Measures all other ways to take the same step, at a few points."""
    _train(run, "train_step_peers", run.plan.everyone, against_everyone, share)


def run_rest(run: Run, share: float) -> None:
    """Measures as much of the remaining grid as there is time for."""
    _train(run, "train_step_rest", run.plan.rest, against_torch, share)


def _train(run: Run, name: str, points: Sequence[Size], peers: Callable[[Run], list[Peer]], share: float) -> None:
    def measure(sizes: dict[str, Any]) -> Row:
        row = run.measure(sizes, peers(run), WINDOWS, losses=LOSSES)
        compare_losses(row)
        return row

    run.take(name, [size._asdict() for size in points], share, measure)


def compare_losses(row: Row) -> None:
    """Adds whether a peer's first losses are charjax's: all but flax start from the same weights."""
    ours = row["peers"][OURS].get("losses")
    for name, result in row["peers"].items():
        if ours and "losses" in result and not name.startswith("flax"):
            difference = max(abs(a - b) for a, b in zip(ours, result["losses"], strict=True))
            result["losses_differ_by"] = difference
            # charjax's own losses are those of bfloat16.
            result["losses_agree"] = difference <= LOSS_TOLERANCE["bfloat16"]


def against_torch(run: Run, formats: Sequence[str] = FORMATS) -> list[Peer]:
    """Returns charjax as it comes and by the Hopper kernels, and PyTorch in its forms."""
    found = ours(run)
    if "torch" not in run.workers:
        return found
    graph = run.about["torch"]["platform"] == "cuda"
    # cuDNN has a faster algorithm for single layers, which it never chooses for several in one nn.LSTM.
    return found + [
        Peer(
            f"torch {form}{' stacked' if stacked else ''}", run.workers["torch"], "torch_training:lstm",
            {"dtype": form, "stacked": stacked, "graph": graph},
        )
        for form, stacked in itertools.product(formats if graph else ("fp32",), (False, True))
    ]  # fmt: skip


def ours(run: Run) -> list[Peer]:
    """Returns charjax as it comes and, on a GPU, by the Hopper kernels, where they are not its choice."""
    hopper = [charjax_peer(run, HOPPER, HOPPER)] if run.platform == "gpu" else []
    return [charjax_peer(run, OURS), *hopper]


def against_everyone(run: Run) -> list[Peer]:
    """Returns charjax as it comes, in other formats and by its other implementations, JAX's cuDNN, flax and PyTorch."""
    found = [*ours(run), *others(run), charjax_peer(run, f"{OURS} float32", None, "float32", "highest")]
    if run.platform == "gpu":
        # What a GPU's float32 products are by default.
        found += [charjax_peer(run, f"{OURS} tf32", None, "float32", "tensorfloat32")]
        found += [charjax_peer(run, "jax cudnn tf32", "cudnn", "float32", "tensorfloat32")]
        found += [charjax_peer(run, "jax cudnn float32", "cudnn", "float32", "highest")]
    flax = Peer("flax nn.RNN bfloat16", run.workers["jax"], "jax_training:flax", {"dtype": "bfloat16"})
    torch = against_torch(run, ("tf32", "fp32"))[len(ours(run)) :]
    return [*found, charjax_peer(run, "scan bfloat16", "scan"), flax, *torch]


def others(run: Run) -> list[Peer]:
    """Returns the other implementations that are there for their speed on a GPU or a TPU."""
    names = [name for name in run.about["jax"]["implementations"] if name not in (*PORTABLE, HOPPER, "cudnn")]
    return [charjax_peer(run, f"{name} bfloat16", name) for name in names]


def charjax_peer(
    run: Run, name: str, implementation: str | None = None, dtype: str = "bfloat16", precision: str | None = None
) -> Peer:
    """Describes charjax's training step."""
    spec = {"implementation": implementation, "dtype": dtype, "precision": precision}
    return Peer(name, run.workers["jax"], "jax_training:charjax", spec)


def run_generation(run: Run, share: float) -> None:
    """Measures sampling, all numbers of texts for the larger model first, in the faster format first."""
    items = [
        {
            "dtype": dtype, "hidden_dim": hidden, "hidden_layers": GENERATION_LAYERS, "streams": streams,
            "length": run.plan.length,
        }
        for dtype, hidden, streams in itertools.product(
            ("bfloat16", "float32"), run.plan.generation_hidden, run.plan.streams
        )
    ]  # fmt: skip

    def measure(sizes: dict[str, Any]) -> Row:
        return run.measure(sizes, generators(run), 1, dtype=sizes["dtype"])

    run.take("generation", items, share, measure)


def generators(run: Run) -> list[Peer]:
    """Returns charjax's decoding and PyTorch's loops."""
    found = [Peer(OURS, run.workers["jax"], "jax_generation:charjax_steps")]
    if run.platform == "gpu":
        # Its kernel chooses the characters; measurements decide whether it becomes the default.
        spec = {"implementation": HOPPER}
        found.append(Peer(HOPPER, run.workers["jax"], "jax_generation:charjax_steps", spec))
    if "torch" in run.workers:
        graph = run.about["torch"]["platform"] == "cuda"
        for name, step in (("torch nn.LSTM", "lstm"), ("torch nn.LSTMCell", "cells")):
            spec = {"step": step, "graph": graph}
            found.append(Peer(name, run.workers["torch"], "torch_generation:steps", spec))
    return found
