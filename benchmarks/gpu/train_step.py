"""Stage 2: the whole training step, charjax beside PyTorch's cuDNN, JAX's cuDNN, and loops by others."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu.correctness import PORTABLE
from benchmarks.gpu.plan import Size
from benchmarks.gpu.run import Peer, Run
from benchmarks.peers import WINDOWS
from benchmarks.train_step import LOSS_TOLERANCE

LOSSES = 4
OURS = "charjax"
# Of PyTorch. Products in true float32 are the slowest everywhere, and measured where it matters alone.
FORMATS = ("fp16", "bf16", "tf32")


def run_important(run: Run, share: float) -> None:
    """The points that matter, beside PyTorch."""
    peers = functools.partial(against_torch, formats=(*FORMATS, "fp32"))
    _measure(run, "train_step", run.plan.important, peers, share)


def run_everyone(run: Run, share: float) -> None:
    """All other ways to take the same step, at a few points."""
    _measure(run, "train_step_peers", run.plan.everyone, against_everyone, share)


def run_rest(run: Run, share: float) -> None:
    """As much of the remaining grid as there is time for."""
    _measure(run, "train_step_rest", run.plan.rest, against_torch, share)


def _measure(run: Run, name: str, points: Sequence[Size], peers: Callable[[Run], list[Peer]], share: float) -> None:
    stage = run.results.stage(name)

    def measure(size: Size) -> None:
        run.say(f"{name}: H {size.hidden_dim}, L {size.hidden_layers}, B {size.batch_size}")
        row = run.measure("train", size._asdict(), peers(run), WINDOWS, losses=LOSSES)
        _compare_losses(row)
        stage["rows"].append(row)
        run.results.save()

    stage["not_run"] = [size._asdict() for size in run.clock.take(points, share, measure)]


def against_torch(run: Run, formats: tuple[str, ...] = FORMATS) -> list[Peer]:
    """Charjax as it comes, and PyTorch in all its forms."""
    found = [_jax(OURS, None, "bfloat16")]
    if OURS in run.given_up:
        found += _kernels(run)
    return found + (torch_peers(run.about["torch"]["platform"], formats) if "torch" in run.workers else [])


def against_everyone(run: Run) -> list[Peer]:
    """Charjax as it comes, in other formats and by its other implementations, JAX's cuDNN and flax."""
    found = [_jax(OURS, None, "bfloat16"), *_kernels(run), _jax(f"{OURS} float32", None, "float32", "highest")]
    if run.platform == "gpu":
        # What a GPU's float32 products are by default.
        found += [_jax(f"{OURS} tf32", None, "float32", "tensorfloat32")]
        found += [_jax("jax cudnn tf32", "cudnn", "float32", "tensorfloat32")]
        found += [_jax("jax cudnn float32", "cudnn", "float32", "highest")]
    flax = Peer("flax nn.RNN bfloat16", "jax", {"kind": "flax", "dtype": "bfloat16", "precision": None})
    return [*found, _jax("scan bfloat16", "scan", "bfloat16"), flax]


def _kernels(run: Run) -> list[Peer]:
    """The implementations that are there for their speed on a GPU or a TPU."""
    names = [name for name in run.about["jax"]["implementations"] if name not in (*PORTABLE, "cudnn")]
    return [_jax(f"{name} bfloat16", name, "bfloat16") for name in names]


def torch_peers(platform: str, formats: tuple[str, ...]) -> list[Peer]:
    """Each format with one nn.LSTM of all layers, and with one per layer, for which cuDNN has another algorithm."""
    return [
        Peer(
            f"torch {form}{' stacked' if stacked else ''}",
            "torch",
            {"format": form, "stacked": stacked, "graph": platform == "cuda"},
        )
        for form in (formats if platform == "cuda" else ("fp32",))
        for stacked in (False, True)
    ]


def _jax(name: str, implementation: str | None, dtype: str, precision: str | None = None) -> Peer:
    spec = {"kind": "charjax", "implementation": implementation, "dtype": dtype, "precision": precision}
    return Peer(name, "jax", spec)


def _compare_losses(row: dict[str, Any]) -> None:
    """Charjax's and PyTorch's first losses start from the same weights, so all must agree with charjax's."""
    ours = row["peers"][OURS].get("losses")
    for name, result in row["peers"].items():
        if ours and "losses" in result and not name.startswith("flax"):
            difference = max(abs(a - b) for a, b in zip(ours, result["losses"], strict=True))
            result["losses_differ_by"] = difference
            # charjax's own, in bfloat16, sets what may be expected.
            result["losses_agree"] = difference <= LOSS_TOLERANCE["bfloat16"]
