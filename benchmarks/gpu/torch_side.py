"""What the PyTorch process of benchmarks.gpu does: the same training step and sampling, as well as PyTorch can.

On CUDA: time-major, characters as rows of an identity matrix, weights flat, autocast for the half formats, fused and
capturable Adam, and a CUDA graph of eight whole training steps, or of all steps of one sampled text. In fp16 the loss
is not scaled, which spares PyTorch work that training would need.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peers import LEARNING_RATE, VOCAB, WINDOWS, initial_params, windows
from charjax.interop import to_torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    # A rehearsal: threads would wait for each other longer than they work.
    torch.set_num_threads(1)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
State = list[tuple[torch.Tensor, torch.Tensor]]


def describe() -> dict[str, Any]:
    """PyTorch's device and the libraries that it brings."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "platform": DEVICE.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }


def release() -> None:
    """Gives the device's memory back."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


class Model(torch.nn.Module):
    """LSTM layers, in one `nn.LSTM` or each in one of its own, and the head; time-major."""

    def __init__(self, hidden: int, layers: int, *, stacked: bool) -> None:
        super().__init__()
        depths = [1] * layers if stacked else [layers]
        self.parts = torch.nn.ModuleList(
            torch.nn.LSTM(hidden if n else VOCAB, hidden, depth) for n, depth in enumerate(depths)
        )
        self.head = torch.nn.Linear(hidden, VOCAB)
        self.to(DEVICE)

    def forward(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """X [T, B, V] -> (logits [T, B, V], state)."""
        after = []
        for part, before in zip(self.parts, state, strict=True):
            x, last = part(x, before)
            after.append(last)
        return self.head(x), after

    def zero_state(self, batch: int, dtype: torch.dtype) -> State:
        """(h, c) of zeros for each part."""
        shapes = [(part.num_layers, batch, part.hidden_size) for part in self.parts]
        return [tuple(torch.zeros(shape, dtype=dtype, device=DEVICE) for _ in "hc") for shape in shapes]

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes charjax's parameters over, in place, so that the weights stay flat."""
        layers = [(part, n) for part in self.parts for n in range(part.num_layers)]
        with torch.no_grad():
            for number, (part, n) in enumerate(layers):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(part, f"{name}_l{n}").copy_(torch.as_tensor(arrays[f"lstm.{name}_l{number}"]))
            self.head.weight.copy_(torch.as_tensor(arrays["head.weight"]))
            self.head.bias.copy_(torch.as_tensor(arrays["head.bias"]))


def train(sizes: dict[str, Any], spec: dict[str, Any], losses: int) -> tuple[Callable[[int], Any], dict[str, Any]]:
    """Sets a training step up: spec has "format" (fp32, tf32, bf16, fp16), "stacked" and "graph"."""
    begin = time.perf_counter()
    model = Model(sizes["hidden_dim"], sizes["hidden_layers"], stacked=spec["stacked"])
    model.load(to_torch(initial_params(sizes)))
    for name, parameter in model.named_parameters():
        # PyTorch keeps two biases that are added up: trained both, they would learn at twice the rate.
        parameter.requires_grad_("bias_hh" not in name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True, capturable=DEVICE.type == "cuda")
    half = HALF.get(spec["format"])
    eye = torch.eye(VOCAB, dtype=half or torch.float32, device=DEVICE)
    # [WINDOWS, T + 1, B]
    ids = torch.from_numpy(np.ascontiguousarray(windows(sizes["batch_size"]).swapaxes(1, 2))).long().to(DEVICE)
    zero = model.zero_state(sizes["batch_size"], eye.dtype)
    state, cursor, loss = zero, 0, torch.zeros(())

    def step() -> None:
        nonlocal state, cursor, loss
        window, state = ids[cursor], zero if cursor == 0 else state
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, half, enabled=half is not None, cache_enabled=False):
            logits, state = model(eye[window[:-1]], state)
        value = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[1:].flatten())
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        state = [tuple(part.detach() for part in pair) for pair in state]
        # Detached: what is left of a step's graph would tie the parameters to the stream that it ran on.
        cursor, loss = (cursor + 1) % WINDOWS, value.detach()

    def steps_of_all_windows() -> None:
        for _ in range(WINDOWS):
            step()

    def loss_of_step() -> float:
        step()
        return float(loss)

    _allow_tf32(spec["format"] == "tf32")
    first = _warm_up(lambda: [loss_of_step() for _ in range(WINDOWS)])[:losses]
    take_windows = _capture(steps_of_all_windows) if spec["graph"] else steps_of_all_windows

    def run(steps: int) -> float:
        if steps % WINDOWS:
            raise ValueError(f"steps must be a multiple of {WINDOWS}, not {steps}")
        _allow_tf32(spec["format"] == "tf32")
        for _ in range(steps // WINDOWS):
            take_windows()
        return float(loss)

    return run, {"losses": first, "first_step_seconds": time.perf_counter() - begin}


@torch.no_grad()
def generate(sizes: dict[str, Any], spec: dict[str, Any]) -> tuple[Callable[[int], Any], dict[str, Any]]:
    """Sets sampling up: spec has "dtype", "cells" (`nn.LSTMCell` in place of `nn.LSTM`) and "graph".

    A step is a call that draws "length" characters for every stream, on the device: the largest of logits plus Gumbel
    noise is a draw from their softmax.
    """
    begin = time.perf_counter()
    dtype, batch, hidden = getattr(torch, spec["dtype"]), sizes["streams"], sizes["hidden_dim"]
    make = _cells if spec["cells"] else _lstm
    advance, state = make(hidden, sizes["hidden_layers"], batch, dtype)
    head = torch.nn.Linear(hidden, VOCAB).to(DEVICE, dtype)
    eye = torch.eye(VOCAB, dtype=dtype, device=DEVICE)
    ids = torch.zeros(batch, dtype=torch.long, device=DEVICE)
    text = torch.zeros(sizes["length"], batch, dtype=torch.long, device=DEVICE)

    def draw() -> None:
        character, now = ids, state
        for position in range(sizes["length"]):
            y, now = advance(eye[character], now)
            logits = head(y).float()
            character = torch.argmax(logits - torch.empty_like(logits).exponential_().log(), dim=-1)
            text[position] = character
        # In place: a graph reads where it read when it was captured.
        ids.copy_(character)
        for old, new in zip(state, now, strict=True):
            old.copy_(new)

    # As charjax's own products of float32 on a GPU.
    _allow_tf32(True)
    _warm_up(draw)
    draw_text = _capture(draw) if spec["graph"] else draw

    @torch.no_grad()
    def run(steps: int) -> None:
        for _ in range(steps):
            draw_text()
        _wait()

    return run, {"first_call_seconds": time.perf_counter() - begin}


def _lstm(hidden: int, layers: int, batch: int, dtype: torch.dtype) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    lstm = torch.nn.LSTM(VOCAB, hidden, layers).to(DEVICE, dtype)
    state = [torch.zeros(layers, batch, hidden, dtype=dtype, device=DEVICE) for _ in "hc"]

    def advance(x: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        y, after = lstm(x[None], tuple(state))
        return y[0], list(after)

    return advance, state


def _cells(hidden: int, layers: int, batch: int, dtype: torch.dtype) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    cells = [torch.nn.LSTMCell(hidden if n else VOCAB, hidden).to(DEVICE, dtype) for n in range(layers)]
    state = [torch.zeros(batch, hidden, dtype=dtype, device=DEVICE) for _ in range(2 * layers)]

    def advance(x: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        after = []
        for n, cell in enumerate(cells):
            pair = cell(x, (state[2 * n], state[2 * n + 1]))
            x, after = pair[0], [*after, *pair]
        return x, after

    return advance, state


def _allow_tf32(allowed: bool) -> None:
    """Whether products of float32 may be TensorFloat-32."""
    if not hasattr(torch.backends.cudnn, "rnn"):  # before PyTorch 2.9
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        return
    setting = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = setting


def _warm_up(work: Callable[[], Any]) -> Any:
    """Runs work on the stream that a graph is captured on after it: what libraries set up, they set up per stream."""
    if DEVICE.type != "cuda":
        return work()
    stream = _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def _capture(work: Callable[[], Any]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(), stream=_side_stream()):
        work()
    graph.replay()
    _wait()
    return graph.replay


@functools.cache
def _side_stream() -> Any:
    return torch.cuda.Stream()


@functools.cache
def _pool() -> Any:
    """One memory for all graphs: they never run at the same time, and keep nothing there from one run to the next."""
    return torch.cuda.graph_pool_handle()


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
