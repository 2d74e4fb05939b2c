"""Generation in PyTorch, as well as a loop over characters can be written: candidates are tried, the fastest is kept.

Candidates differ in how a step is written (`nn.LSTM`; stacked `nn.LSTMCell`, both fed with rows of an identity matrix;
or products and gates written out, layer 0's input looked up in a table), in bfloat16 with autocast in place of bfloat16
weights, in the number of threads, and in how a character is drawn. All read the context by one call of `nn.LSTM`, keep
their state and their output on the device, and run in inference mode. "torch compiled" is the written-out step under
`torch.compile`, with and without the tuning of its matrix products, and eight steps to a call where calls are what
takes the time.
"""

import contextlib
import functools
import importlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.generation.problem import CONTEXT, parameters, text
from benchmarks.peers import VOCAB
from charjax.host.cpu import available_cores
from charjax.interop import to_torch

UNROLLED = 8
# A longer step has little to win from fewer calls, and every copy of it reads a copy of the packed weights.
MOST_TO_UNROLL = 100e-6
Tensor = torch.Tensor
State = tuple[Tensor, ...]
Sample = Callable[[Tensor], Tensor]


def by_multinomial(logits: Tensor) -> Tensor:
    """[B, V] -> [B], by the library's own function."""
    return torch.multinomial(torch.softmax(logits.float(), -1), 1)[:, 0]


def by_exponentials(logits: Tensor) -> Tensor:
    """[B, V] -> [B], the least of exponential variables with the characters' probabilities as rates."""
    probs = torch.softmax(logits.float(), -1)
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def by_gumbel(logits: Tensor) -> Tensor:
    """[B, V] -> [B], the largest of logits plus Gumbel noise."""
    logits = logits.float()
    return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


class Network(torch.nn.Module):
    """The model, and three ways to take a step; its state is h and c per layer, each [B, H]."""

    def __init__(self, sizes: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        hidden, self.layers = sizes["hidden_dim"], sizes["hidden_layers"]
        self.lstm = torch.nn.LSTM(VOCAB, hidden, self.layers)
        self.head = torch.nn.Linear(hidden, VOCAB)
        arrays = to_torch(parameters(sizes))
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        cells = [torch.nn.LSTMCell(hidden if n else VOCAB, hidden) for n in range(self.layers)]
        for n, cell in enumerate(cells):
            cell.load_state_dict({name: getattr(self.lstm, f"{name}_l{n}") for name in cell.state_dict()})
        self.cells = torch.nn.ModuleList(cells)
        self.register_buffer("eye", torch.eye(VOCAB))
        self.register_buffer("table", cells[0].weight_ih.detach().T + cells[0].bias_ih.detach())
        self.to(dtype).eval()

    def read(self, ids: Tensor) -> tuple[Tensor, State]:
        """Ids [T, B] -> (logits [B, V], state)."""
        y, (h, c) = self.lstm(self.eye[ids])
        return self.head(y[-1]), tuple(itertools.chain(*zip(h.unbind(), c.unbind(), strict=True)))

    def by_lstm(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: ids [B] -> (logits, state), which is h and c [L, B, H] here."""
        y, state = self.lstm(self.eye[ids][None], state)
        return self.head(y[0]), state

    def by_cells(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: ids [B] -> (logits, state)."""
        x, after = self.eye[ids], []
        for n, cell in enumerate(self.cells):
            pair = cell(x, (state[2 * n], state[2 * n + 1]))
            x, after = pair[0], [*after, *pair]
        return self.head(x), tuple(after)

    def by_hand(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: ids [B] -> (logits, state)."""
        x, after = functional.embedding(ids, self.table), []
        for n, cell in enumerate(self.cells):
            given = functional.linear(x, cell.weight_ih, cell.bias_ih) if n else x
            i, f, g, o = (given + functional.linear(state[2 * n], cell.weight_hh)).chunk(4, -1)
            c = f.sigmoid() * state[2 * n + 1] + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            after += [x, c]
        return self.head(x), tuple(after)


class Loop:
    """A way to generate: a step, a number of threads, a way to draw, and how many steps a call takes.

    Attributes:
        threads: for PyTorch to use.
        about: what is told of it.
    """

    def __init__(
        self, network: Network, context: Tensor, name: str, threads: int, sample: Sample, *, autocast: bool = False
    ) -> None:
        self.network, self.context, self.name, self.threads = network, context, name, threads
        self.sample, self.autocast, self.calls = sample, autocast, 1
        self.forward = getattr(network, f"by_{name}")
        self.step: Callable[..., tuple[Tensor, State]] = self._step
        self.about: dict[str, Any] = {"step": name, "threads": threads, "sampling": sample.__name__}
        self.about |= {"autocast": True} if autocast else {}

    def compile(self, mode: str, calls: int) -> None:
        """Puts `calls` steps under `torch.compile`, and runs them for the first time."""
        self.calls = calls
        step = self._steps if calls > 1 else self._step
        self.step = torch.compile(step, mode=mode, dynamic=False, fullgraph=True)
        # Two calls: the state comes from the context once, and then from the step itself.
        first, again = (_stretch(lambda: self.draw(1 + 2 * calls, 0), 1) for _ in range(2))
        self.about |= {"mode": mode, "steps_per_call": calls, "compile_seconds": first - again}

    def draw(self, length: int, seed: int) -> np.ndarray:
        """-> ids [B, length], the context read anew."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(seed)
        with self._settings():
            logits, state = self._read(self.context)
            ids = self.sample(logits)
            calls = -(-(length - 1) // self.calls)
            drawn = torch.empty((1 + calls * self.calls, len(ids)), dtype=torch.long)
            drawn[0] = ids
            for at in range(1, len(drawn), self.calls):
                new, state = self.step(ids, state)
                drawn[at : at + self.calls] = new
                ids = new if self.calls == 1 else new[-1]
        return drawn[:length].T.numpy()

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Ids [B, T] -> logits [B, V] of the character after them, by steps after the first."""
        torch.set_num_threads(self.threads)
        with self._settings():
            first, *rest = torch.from_numpy(ids).long().T
            logits, state = self._read(first[None])
            for now in rest:
                logits, state = self.forward(now, state)
        return logits.float().numpy()

    def seconds_per_step(self, trial: float) -> float:
        """Of the loop in the state after the context, whose steps all take the same time."""
        torch.set_num_threads(self.threads)
        with self._settings():
            logits, state = self._read(self.context)
            ids = self.sample(logits)
            return _seconds(lambda: self.step(ids, state), trial) / self.calls

    @contextlib.contextmanager
    def _settings(self) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            yield

    def _read(self, ids: Tensor) -> tuple[Tensor, State]:
        logits, state = self.network.read(ids)
        return logits, (torch.stack(state[::2]), torch.stack(state[1::2])) if self.name == "lstm" else state

    def _step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = self.forward(ids, state)
        return self.sample(logits), state

    def _steps(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        drawn = []
        for _ in range(self.calls):
            ids, state = self._step(ids, state)
            drawn.append(ids)
        return torch.stack(drawn), state


def set_up_loop(sizes: dict[str, Any], dtype: str, trial: float) -> tuple[Any, Any, dict[str, Any]]:
    """The fastest eager loop."""
    candidates = [
        Loop(network, context, name, threads, sample, autocast=autocast)
        for network, context, autocast in _networks(sizes, dtype)
        for threads, sample in _samples(sizes["streams"], trial).items()
        for name in ("lstm", "cells", "hand")
    ]
    draw, logits, about = _keep_fastest([(loop, loop.seconds_per_step(trial)) for loop in candidates])
    return draw, logits, {**about, "compile_seconds": 0.0}


def set_up_compiled(sizes: dict[str, Any], dtype: str, trial: float) -> tuple[Any, Any, dict[str, Any]]:
    """The fastest compiled step, on as many threads as serve the same step best before it is compiled."""
    _start_compiler()
    torch._dynamo.reset()
    network, context, _ = _networks(sizes, dtype)[0]
    eager = [Loop(network, context, "hand", threads, by_exponentials) for threads in _threads()]
    threads = min(eager, key=lambda loop: loop.seconds_per_step(trial)).threads
    measured = []
    for mode, calls in (("default", 1), ("max-autotune", 1), ("max-autotune", UNROLLED)):
        if calls == 1 or measured[-1][1] < MOST_TO_UNROLL:
            loop = Loop(network, context, "hand", threads, by_exponentials)
            loop.compile(mode, calls)
            measured.append((loop, loop.seconds_per_step(trial)))
    return _keep_fastest(measured)


def _networks(sizes: dict[str, Any], dtype: str) -> list[tuple[Network, Tensor, bool]]:
    """The model in a format, the context [T, B], and whether autocast makes the format."""
    context = torch.from_numpy(text(sizes["streams"], CONTEXT)).long().T.contiguous()
    networks = [(Network(sizes, getattr(torch, dtype)), context, False)]
    return networks if dtype == "float32" else [*networks, (Network(sizes, torch.float32), context, True)]


def _threads() -> list[int]:
    return sorted({1, available_cores()})


def _samples(streams: int, trial: float) -> dict[int, Sample]:
    """The fastest way to draw for each number of threads."""
    logits, fastest = torch.randn(streams, VOCAB), {}
    for threads in _threads():
        torch.set_num_threads(threads)
        with torch.inference_mode():
            ways = (by_multinomial, by_exponentials, by_gumbel)
            fastest[threads] = min(ways, key=lambda way: _seconds(functools.partial(way, logits), trial))
    return fastest


def _keep_fastest(measured: list[tuple[Loop, float]]) -> tuple[Any, Any, dict[str, Any]]:
    best, _ = min(measured, key=lambda pair: pair[1])
    tried = [{**loop.about, "seconds_per_step": seconds} for loop, seconds in measured]
    return best.draw, best.logits, {**best.about, "tried": tried}


def _seconds(work: Callable[[], Any], trial: float) -> float:
    """Of one call, in the fastest of three stretches of calls that take `trial` seconds; a first one does not count."""
    work()
    calls, taken = 1, [0.0]
    while taken[-1] < trial:
        taken = [_stretch(work, calls)]
        calls *= 2
    taken += [_stretch(work, calls // 2) for _ in range(2)]
    return min(taken) / (calls // 2)


def _stretch(work: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - start


@functools.cache
def _start_compiler() -> None:
    """Compiles something small, so that no program's compile time has the compiler's own start in it."""
    # Weights are packed for the products once, when a step is compiled: what PyTorch recommends for inference.
    importlib.import_module("torch._inductor.config").freezing = True
    with torch.inference_mode():
        torch.compile(lambda x: x.exp() + 1)(torch.zeros(64))


PEERS = {"torch loop": set_up_loop, "torch compiled": set_up_compiled}
