"""Generation in PyTorch, as fast as a loop over characters can be written: candidates are tried, the fastest is kept.

Candidates differ in how a step is written (`nn.LSTM`; stacked `nn.LSTMCell`, both fed with rows of an identity matrix;
or matrix products and gates written out, layer 0's input looked up in a table), in bfloat16 by autocast or by bfloat16
weights, in the number of threads, and in how a character is sampled. All read the context by one call of `nn.LSTM`,
keep state and output on the device, and run in inference mode. "compiled" is the written-out step under
`torch.compile`, with and without tuned matrix products, and eight steps to a call where calls dominate.
"""

import contextlib
import functools
import importlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.common.problem import CONTEXT, VOCAB, generation_params, text
from benchmarks.peers.generation import Generator, start
from benchmarks.peers.steps import Steps
from benchmarks.peers.torch_device import DEVICE, allow_tf32, capture, wait, warm_up
from charjax.host.cpu import available_cores
from charjax.interop import to_torch

UNROLLED = 8
# A longer step gains little from fewer calls, and each copy of it reads its own copy of the packed weights.
MOST_TO_UNROLL = 100e-6
Sizes = dict[str, Any]
Tensor = torch.Tensor
State = tuple[Tensor, ...]
SetUp = tuple[Generator, dict[str, Any]]


def by_multinomial(logits: Tensor) -> Tensor:
    """Samples [B, V] -> [B] by the library's own function."""
    return torch.multinomial(torch.softmax(logits.float(), -1), 1)[:, 0]


def by_exponentials(logits: Tensor) -> Tensor:
    """Samples [B, V] -> [B] by the least of exponential variables whose rates are the probabilities."""
    probs = torch.softmax(logits.float(), -1)
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def by_gumbel(logits: Tensor) -> Tensor:
    """Samples [B, V] -> [B] by the largest of logits plus Gumbel noise."""
    logits = logits.float()
    return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


class Network(torch.nn.Module):
    """The model, and three ways to take a step; its state is h and c per layer, each [B, H]."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        super().__init__()
        hidden, self.layers = sizes["hidden_dim"], sizes["hidden_layers"]
        self.lstm = torch.nn.LSTM(VOCAB, hidden, self.layers)
        self.head = torch.nn.Linear(hidden, VOCAB)
        arrays = to_torch(generation_params(sizes))
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        cells = [torch.nn.LSTMCell(hidden if n else VOCAB, hidden) for n in range(self.layers)]
        for n, cell in enumerate(cells):
            cell.load_state_dict({name: getattr(self.lstm, f"{name}_l{n}") for name in cell.state_dict()})
        self.cells = torch.nn.ModuleList(cells)
        self.register_buffer("eye", torch.eye(VOCAB))
        self.register_buffer("table", cells[0].weight_ih.detach().T + cells[0].bias_ih.detach())
        self.to(device, dtype).eval()

    def prefill(self, ids: Tensor, name: str) -> tuple[Tensor, State]:
        """Maps ids [T, B] to (logits [B, V], state as `by_NAME` takes it)."""
        y, (h, c) = self.lstm(self.eye[ids])
        pairs = itertools.chain(*zip(h.unbind(), c.unbind(), strict=True))
        return self.head(y[-1]), (h, c) if name == "lstm" else tuple(pairs)

    def by_lstm(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Takes one step: ids [B] -> (logits, state), which is h and c [L, B, H] here."""
        y, state = self.lstm(self.eye[ids][None], state)
        return self.head(y[0]), state

    def by_cells(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Takes one step: ids [B] -> (logits, state)."""
        x, after = self.eye[ids], []
        for n, cell in enumerate(self.cells):
            pair = cell(x, (state[2 * n], state[2 * n + 1]))
            x, after = pair[0], [*after, *pair]
        return self.head(x), tuple(after)

    def by_hand(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Takes one step: ids [B] -> (logits, state)."""
        x, after = functional.embedding(ids, self.table), []
        for n, cell in enumerate(self.cells):
            given = functional.linear(x, cell.weight_ih, cell.bias_ih) if n else x
            i, f, g, o = (given + functional.linear(state[2 * n], cell.weight_hh)).chunk(4, -1)
            c = f.sigmoid() * state[2 * n + 1] + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            after += [x, c]
        return self.head(x), tuple(after)


class Loop:
    """A way to generate: how a step and a sample are made, on how many threads, and how many steps a call takes.

    Attributes:
        threads: for PyTorch to use.
        about: what the result says of it.
    """

    def __init__(
        self, network: Network, context: Tensor, name: str, threads: int, choose: Callable[[Tensor], Tensor], *,
        autocast: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.context, self.name, self.threads = network, context, name, threads
        self.choose, self.autocast, self.calls = choose, autocast, 1
        self.forward = getattr(network, f"by_{name}")
        self.step: Callable[..., tuple[Tensor, State]] = self._step
        self.about: dict[str, Any] = {"step": name, "threads": threads, "sampling": choose.__name__}
        self.about |= {"autocast": True} if autocast else {}

    def compile(self, mode: str, calls: int) -> None:
        """Puts `calls` steps under `torch.compile`, and runs them for the first time."""
        self.calls = calls
        self.step = torch.compile(self._steps if calls > 1 else self._step, mode=mode, dynamic=False, fullgraph=True)
        # Two calls: the state comes from the context once, and then from the step itself.
        first, again = (_stretch(lambda: self.sample(1 + 2 * calls, 0), 1) for _ in range(2))
        self.about |= {"mode": mode, "steps_per_call": calls, "compile_seconds": first - again}

    def sample(self, length: int, seed: int) -> np.ndarray:
        """Returns ids [B, length], after reading the context again."""
        torch.manual_seed(seed)
        with self._settings():
            logits, state = self.network.prefill(self.context, self.name)
            ids = self.choose(logits)
            calls = -(-(length - 1) // self.calls)
            sampled = torch.empty((1 + calls * self.calls, len(ids)), dtype=torch.long)
            sampled[0] = ids
            for at in range(1, len(sampled), self.calls):
                new, state = self.step(ids, state)
                sampled[at : at + self.calls] = new
                ids = new if self.calls == 1 else new[-1]
        return sampled[:length].T.numpy()

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Maps ids [B, T] to logits [B, V] of the character after them, by steps after the first."""
        with self._settings():
            first, *rest = torch.from_numpy(ids).long().T
            logits, state = self.network.prefill(first[None], self.name)
            for now in rest:
                logits, state = self.forward(now, state)
        return logits.float().numpy()

    def seconds_per_step(self, trial: float) -> float:
        """Times the step in the state after the context; all steps take the same time."""
        with self._settings():
            logits, state = self.network.prefill(self.context, self.name)
            ids = self.choose(logits)
            return _seconds(lambda: self.step(ids, state), trial) / self.calls

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        torch.set_num_threads(self.threads)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            yield

    def _step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = self.forward(ids, state)
        return self.choose(logits), state

    def _steps(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        sampled = []
        for _ in range(self.calls):
            ids, state = self._step(ids, state)
            sampled.append(ids)
        return torch.stack(sampled), state


def loop(sizes: Sizes, dtype: str, length: int, trial: float) -> SetUp:
    """Sets up the fastest eager loop; each candidate is timed for `trial` seconds."""
    candidates = [
        Loop(network, context, name, threads, choose, autocast=autocast)
        for network, context, autocast in networks(sizes, dtype)
        for threads, choose in _fastest_samplers(sizes["streams"], trial).items()
        for name in ("lstm", "cells", "hand")
    ]
    measured = [(candidate, candidate.seconds_per_step(trial)) for candidate in candidates]
    return _start_fastest(measured, length, compile_seconds=0.0)


def compiled(sizes: Sizes, dtype: str, length: int, trial: float) -> SetUp:
    """Sets up the fastest compiled step, on the number of threads that is best for it before it is compiled."""
    _start_compiler()
    torch._dynamo.reset()
    network, context, _ = networks(sizes, dtype)[0]
    eager = [Loop(network, context, "hand", threads, by_exponentials) for threads in _threads()]
    threads = min(eager, key=lambda candidate: candidate.seconds_per_step(trial)).threads
    measured: list[tuple[Loop, float]] = []
    for mode, calls in (("default", 1), ("max-autotune", 1), ("max-autotune", UNROLLED)):
        if calls == 1 or measured[-1][1] < MOST_TO_UNROLL:
            candidate = Loop(network, context, "hand", threads, by_exponentials)
            candidate.compile(mode, calls)
            measured.append((candidate, candidate.seconds_per_step(trial)))
    return _start_fastest(measured, length)


@torch.no_grad()
def steps(sizes: Sizes, dtype: str, step: str, graph: bool) -> tuple[Steps, dict[str, Any]]:
    """Sets up sampling that stays on the device: a step is "length" characters for every text.

    Args:
        sizes: hidden_dim, hidden_layers, streams and length.
        dtype: of the weights.
        step: how one is taken, "lstm" or "cells".
        graph: replay a CUDA graph of all characters.
    """
    begin = time.perf_counter()
    network = Network(sizes, getattr(torch, dtype), DEVICE)
    forward = getattr(network, f"by_{step}")
    ids = torch.zeros(sizes["streams"], dtype=torch.long, device=DEVICE)
    _, state = network.prefill(ids[None], step)
    sampled = torch.zeros(sizes["length"], len(ids), dtype=torch.long, device=DEVICE)

    def take() -> None:
        character, now = ids, state
        for position in range(len(sampled)):
            logits, now = forward(character, now)
            character = by_gumbel(logits)
            sampled[position] = character
        # In place: a graph reads from where it read when it was captured.
        ids.copy_(character)
        for old, new in zip(state, now, strict=True):
            old.copy_(new)

    # As charjax's own float32 products on a GPU.
    allow_tf32(True)
    warm_up(take)
    take_again = capture(take) if graph else take

    @torch.no_grad()
    def run(steps: int) -> None:
        for _ in range(steps):
            take_again()
        wait()

    return Steps(run), {"first_call_seconds": time.perf_counter() - begin}


def networks(sizes: Sizes, dtype: str) -> list[tuple[Network, Tensor, bool]]:
    """Returns the model in a format, the context [T, B], and whether autocast makes the format; one or two of them."""
    context = torch.from_numpy(text(sizes["streams"], CONTEXT)).long().T.contiguous()
    found = [(Network(sizes, getattr(torch, dtype)), context, False)]
    return found if dtype == "float32" else [*found, (Network(sizes, torch.float32), context, True)]


def _threads() -> list[int]:
    return sorted({1, available_cores()})


def _fastest_samplers(streams: int, trial: float) -> dict[int, Callable[[Tensor], Tensor]]:
    """Returns the fastest way to sample for each number of threads."""
    logits, fastest = torch.randn(streams, VOCAB), {}
    for threads in _threads():
        torch.set_num_threads(threads)
        with torch.inference_mode():
            ways = (by_multinomial, by_exponentials, by_gumbel)
            fastest[threads] = min(ways, key=lambda way: _seconds(functools.partial(way, logits), trial))
    return fastest


def _start_fastest(measured: list[tuple[Loop, float]], length: int, **about: Any) -> SetUp:
    best, _ = min(measured, key=lambda pair: pair[1])
    tried = [{**candidate.about, "seconds_per_step": seconds} for candidate, seconds in measured]
    return start(best.sample, best.logits, length, **best.about, **about, tried=tried)


def _seconds(work: Callable[[], Any], trial: float) -> float:
    """Times a call, as the fastest of three stretches of calls that take `trial` seconds; a first one is left out."""
    work()
    calls, taken = 1, [0.0]
    while taken[-1] < trial:
        taken = [_stretch(work, calls)]
        calls *= 2
    taken += [_stretch(work, calls // 2) for _ in range(2)]
    return min(taken) / (calls // 2)


def _stretch(work: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - begin


@functools.cache
def _start_compiler() -> None:
    """Compiles something small, so that the compiler's own start is in no program's compile time."""
    # Weights are packed for matrix products once, when a step is compiled: PyTorch's advice for inference.
    importlib.import_module("torch._inductor.config").freezing = True
    with torch.inference_mode():
        torch.compile(lambda x: x.exp() + 1)(torch.zeros(64))
