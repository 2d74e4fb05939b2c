"""The stages that say why a device is as fast as it is (its limits, profiles, ways to compile), and a training."""

import itertools
from typing import Any

from benchmarks.common.contest import Peer
from benchmarks.common.problem import TEXT, WINDOWS
from benchmarks.common.report import Row
from benchmarks.gpu.stages import HOPPER, Run, ours

# What XLA is asked to do in a process of its own; "unroll" is the number of diagonals per iteration of `wavefront`.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "loops as CUDA graphs": {"flags": "--xla_gpu_enable_command_buffer=+WHILE"},
    "loops as CUDA graphs, unrolled": {
        "flags": "--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_command_buffer_unroll_loops=true"
    },
    "no CUDA graphs": {"flags": "--xla_gpu_enable_command_buffer="},
    "5 diagonals": {"unroll": 5},
    "20 diagonals": {"unroll": 20},
}
# By how much a character that a decoder sampled may miss the highest score: logits are of bfloat16 products.
MARGIN_IN_NATS = 0.1
STATE_TOLERANCE = 2e-2


def run_limits(run: Run, share: float) -> None:
    """Measures a large matmul and a large copy."""

    def measure(item: dict[str, Any]) -> Row:
        return {**item, **run.workers["jax"].ask("device_limits:measure", timeout=run.clock.timeout(), **item)}

    run.take("limits", [run.plan.limits], share, measure)


def run_sampling(run: Run, share: float) -> None:
    """Checks what the decoders sample."""
    items = [
        {"implementation": name, "dtype": dtype, "hidden_dim": run.plan.checks[0][0], "streams": streams}
        for name, dtype, streams in itertools.product((None, HOPPER), ("bfloat16", "float32"), (1, 37))
    ]

    def check(item: dict[str, Any]) -> Row:
        answer = run.workers["jax"].ask("decoder_check:check", timeout=run.clock.timeout(), length=32, **item)
        if "state" in answer:
            answer["agrees"] = answer["state"] <= STATE_TOLERANCE and answer["choice"] <= MARGIN_IN_NATS
        return {**item, **answer}

    run.take("sampling", items, share, check)


def run_profile(run: Run, share: float) -> None:
    """Profiles charjax's training step."""

    def measure(item: dict[str, Any]) -> Row:
        sizes = {name: item[name] for name in ("hidden_dim", "hidden_layers", "batch_size")}
        found: dict[str, Any] = {}
        for peer in ours(run):
            found |= (results := run.contest.set_up([peer], sizes=sizes, losses=1))
            if "cannot_run" not in found[peer.name]:
                found[peer.name] |= run.contest.ask(peer, results, "profile", steps=WINDOWS)
        run.workers["jax"].ask("drop", timeout=run.clock.timeout())
        return {"sizes": sizes, "peers": found}

    run.take("profile", [size._asdict() for size in run.plan.everyone], share, measure)


def run_variants(run: Run, share: float) -> None:
    """Measures the training step as XLA compiles it under other settings, each in a process of its own."""

    def measure(item: dict[str, Any]) -> Row:
        sizes = {name: item[name] for name in ("hidden_dim", "hidden_layers", "batch_size")}
        variant = VARIANTS[item["variant"]]
        flags = {"XLA_FLAGS": variant["flags"]} if "flags" in variant else {}
        with run.make_worker(flags) as worker:
            spec = {"dtype": "bfloat16", "unroll": variant.get("unroll")}
            peer = Peer(item["variant"], worker, "jax_training:charjax", spec)
            row = run.measure(sizes, [peer], WINDOWS, losses=1)
        return {**row, "variant": item["variant"]}

    items = [{**size._asdict(), "variant": name} for size, name in itertools.product(run.plan.everyone, VARIANTS)]
    # The other process holds memory of the device.
    run.workers["jax"].close()
    run.take("variants", items, share, measure)


def run_training(run: Run, share: float) -> None:
    """Trains for real: what a user sees in the first minute."""

    def measure(item: dict[str, Any]) -> Row:
        return {**item, **run.workers["jax"].ask("fit:curve", timeout=3 * item["seconds"] + 90, **item)}

    run.take("training", [{"text": str(TEXT), **run.plan.training}], share, measure)
