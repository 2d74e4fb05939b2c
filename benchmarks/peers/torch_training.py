"""The training step in PyTorch, as fast as it can be written.

Time-major, characters as rows of an identity matrix, one flat weight, autocast for the half formats, fused Adam. On
CUDA Adam is capturable and eight whole steps are one CUDA graph. In fp16 the loss is not scaled, which spares PyTorch
work that training would need.
"""

from typing import Any

import numpy as np
import torch

from benchmarks.common.problem import LEARNING_RATE, VOCAB, WINDOWS, initial_params, windows
from benchmarks.peers.steps import Run, Steps, start
from benchmarks.peers.torch_device import DEVICE, allow_tf32, capture, warm_up
from benchmarks.peers.torch_model import Model, State
from charjax.interop import to_torch

FORMATS = {"float32": "fp32", "bfloat16": "bf16"}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lstm(
    sizes: dict[str, Any], *, dtype: str, losses: int, stacked: bool = False, graph: bool = False,
    compiled: bool = False,
) -> tuple[Steps, dict[str, Any]]:  # fmt: skip
    """Sets up the step.

    Args:
        sizes: hidden_dim, hidden_layers and batch_size.
        dtype: float32 or fp32 (true float32), tf32, bfloat16 or bf16, fp16.
        losses: how many first losses to report, at most WINDOWS.
        stacked: give each layer an `nn.LSTM` of its own.
        graph: replay a CUDA graph of WINDOWS steps.
        compiled: put the forward pass under `torch.compile`.
    """
    form = FORMATS.get(dtype, dtype)
    take = _make_step(sizes, HALF.get(form), stacked=stacked, capturable=graph, compiled=compiled)

    def run(steps: int) -> float:
        # Of the whole process, which has peers in several formats.
        allow_tf32(form == "tf32")
        return float(take(steps))

    peer, about = warm_up(lambda: start(run, losses))
    if graph:
        warm_up(lambda: run(WINDOWS - losses))
        peer = Steps(_replayed(take))
    return peer, about


def _make_step(
    sizes: dict[str, Any], half: torch.dtype | None, *, stacked: bool, capturable: bool, compiled: bool
) -> Any:
    """Returns take(steps), which trains and returns the last loss, on the device."""
    model = Model(VOCAB, sizes["hidden_dim"], sizes["hidden_layers"], stacked=stacked)
    model.load(to_torch(initial_params(sizes)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True, capturable=capturable)
    eye = torch.eye(VOCAB, dtype=half or torch.float32, device=DEVICE)
    # [WINDOWS, T + 1, B]
    ids = torch.from_numpy(np.ascontiguousarray(windows(sizes["batch_size"]).swapaxes(1, 2))).long().to(DEVICE)
    zero = model.zero_state(sizes["batch_size"], eye.dtype)
    state, cursor = zero, 0

    def loss_of(window: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        # A graph must not read casts of the weights that autocast has kept.
        with torch.autocast(DEVICE.type, half, enabled=half is not None, cache_enabled=False):
            logits, state = model(eye[window[:-1]], state)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[1:].flatten()), state

    loss_of_window = torch.compile(loss_of) if compiled else loss_of

    def take(steps: int) -> torch.Tensor:
        nonlocal state, cursor
        for _ in range(steps):
            optimizer.zero_grad()
            loss, state = loss_of_window(ids[cursor], zero if cursor == 0 else state)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            state = [tuple(part.detach() for part in pair) for pair in state]
            cursor = (cursor + 1) % WINDOWS
        # Detached: a step's graph ties the parameters to the stream that it ran on.
        return loss.detach()

    return take


def _replayed(take: Any) -> Run:
    """Returns the step as a CUDA graph of WINDOWS steps."""
    last = torch.zeros((), device=DEVICE)
    replay = capture(lambda: last.copy_(take(WINDOWS)))

    def run(steps: int) -> float:
        if steps % WINDOWS:
            raise ValueError(f"steps must be a multiple of {WINDOWS}, not {steps}")
        for _ in range(steps // WINDOWS):
            replay()
        return float(last)

    return run
