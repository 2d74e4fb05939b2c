"""The peers of benchmarks.train_step, one process each: every one takes the same training step on the same windows.

A step is truncated BPTT over [B, T] characters: one-hot input, L LSTM layers of H, head, mean cross-entropy, gradient
clipped to a global norm of 1, Adam at 1e-3. This module is also the program that such a process runs: it reads
commands as JSON lines and answers in kind.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from charjax.host.cpu import available_cores

VOCAB, SEQ_LEN, WINDOWS, LEARNING_RATE = 128, 100, 8, 1e-3
Run = Callable[[int], float]
"""Takes so many steps and returns the loss of the last."""


def text_ids(batch_size: int) -> np.ndarray:
    """As much of Shakespeare as WINDOWS windows of every stream take."""
    content = (Path(__file__).parent.parent / "data_files" / "shakespeare.txt").read_bytes()
    ids = np.frombuffer(content, np.uint8)
    return np.resize(ids, batch_size * WINDOWS * SEQ_LEN + 1)


def initial_params(sizes: dict[str, Any]) -> Any:
    """The parameters that ours and PyTorch's start from, as NumPy arrays."""
    return _initial_params(sizes["hidden_dim"], sizes["hidden_layers"])


@functools.cache
def _initial_params(hidden_dim: int, hidden_layers: int) -> Any:
    import jax

    from charjax import CharLSTM, init_params

    model = CharLSTM(VOCAB, hidden_dim=hidden_dim, hidden_layers=hidden_layers, implementation="scan")
    return jax.device_get(jax.jit(functools.partial(init_params, model=model))(jax.random.key(0)))


def charjax_peer(sizes: dict[str, Any], *, implementation: str | None, all_cores: bool) -> Run:
    """Charjax's own training step; many steps per call."""
    from charjax.distributed.mesh import make_training_mesh, use_all_cores
    from charjax.host.memory import release_unused_memory, reuse_memory

    if all_cores:
        # What `fit` does before anything else.
        reuse_memory()
        use_all_cores()
    import jax
    import optax

    from charjax import CharLSTM, init_train_state, make_mesh, make_streams, make_train_step, put_streams

    batch_size = sizes["batch_size"]
    mesh = make_training_mesh(batch_size) if all_cores else make_mesh(jax.devices()[:1])
    model = CharLSTM(
        VOCAB, hidden_dim=sizes["hidden_dim"], hidden_layers=sizes["hidden_layers"],
        implementation=implementation, dtype=sizes["dtype"],
    )  # fmt: skip
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    streams = put_streams(make_streams(text_ids(batch_size), batch_size=batch_size, seq_len=SEQ_LEN), mesh)
    step = make_train_step(model, optimizer, seq_len=SEQ_LEN, mesh=mesh)
    # A state is the same however layers are computed: this way, every peer's is made by one program.
    start = model.clone(implementation="scan", dtype="float32")
    state = init_train_state(jax.random.key(0), start, optimizer, batch_size=batch_size, mesh=mesh)
    params = initial_params(sizes)
    state = state.replace(params=jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params))

    calls = 0

    def run(steps: int) -> float:
        nonlocal state, calls
        state, metrics = step(state, streams, steps)
        loss = float(metrics.nats) / int(metrics.chars)
        calls += 1
        if all_cores and calls <= 2:
            release_unused_memory()  # as `fit` does
        return loss

    return run


def jax_peer(sizes: dict[str, Any], make_model: Callable[..., Any]) -> Run:
    """A JAX model of someone else's in a plain jitted step."""
    import jax
    import jax.numpy as jnp
    import optax

    params, apply, carry = make_model(sizes)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    ids = jnp.asarray(windows(sizes["batch_size"]))
    step = make_jax_step(apply, optimizer, sizes["dtype"])
    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    zero = jax.tree.map(np.asarray, carry)
    state = [params, optimizer.init(params), jax.tree.map(jnp.asarray, zero)]
    cursor = 0

    def run(steps: int) -> float:
        nonlocal state, cursor
        value = None
        for _ in range(steps):
            if cursor == 0:
                state[2] = jax.tree.map(jnp.asarray, zero)
            *state, value = jitted(*state, ids[cursor])
            cursor = (cursor + 1) % WINDOWS
        return float(value)

    return run


def make_jax_step(apply: Callable[..., Any], optimizer: Any, dtype: str) -> Callable[..., Any]:
    """A plain training step: (params, opt_state, carry, window [B, T + 1]) -> the first three anew, and the loss."""
    import jax
    import jax.numpy as jnp
    import optax

    def step(params: Any, opt_state: Any, carry: Any, window: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, after = apply(params, jax.nn.one_hot(window[:, :-1], VOCAB, dtype=dtype), carry)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), window[:, 1:])
            return losses.mean(), after

        (value, carry_after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry_after, value

    return step


def flax_model(sizes: dict[str, Any]) -> Any:
    """`flax.linen.RNN` of `OptimizedLSTMCell`, stacked."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, carries: Any) -> Any:
            after = []
            for carry in carries:
                cell = nn.OptimizedLSTMCell(sizes["hidden_dim"], dtype=sizes["dtype"])
                last, x = nn.RNN(cell, return_carry=True)(x, initial_carry=carry)
                after.append(last)
            return nn.Dense(VOCAB, dtype=sizes["dtype"])(x), after

    state = np.zeros((sizes["batch_size"], sizes["hidden_dim"]), jnp.dtype(sizes["dtype"]))
    carry = [(state, state) for _ in range(sizes["hidden_layers"])]
    model = Model()
    x = jnp.zeros((sizes["batch_size"], 1, VOCAB), sizes["dtype"])
    return model.init(jax.random.key(0), x, carry), model.apply, carry


def equinox_model(sizes: dict[str, Any]) -> Any:
    """`equinox.nn.LSTMCell` under vmap in a `lax.scan` per layer."""
    import equinox as eqx
    import jax

    dim, keys = sizes["hidden_dim"], jax.random.split(jax.random.key(0), sizes["hidden_layers"] + 1)
    cells = [eqx.nn.LSTMCell(VOCAB if not n else dim, dim, key=key) for n, key in enumerate(keys[:-1])]
    model = (cells, eqx.nn.Linear(dim, VOCAB, key=keys[-1]))
    params, static = eqx.partition(model, eqx.is_array)

    def apply(params: Any, x: Any, carries: Any) -> Any:
        cells, head = eqx.combine(params, static)
        x, after = x.swapaxes(0, 1), []
        for cell, carry in zip(cells, carries, strict=True):

            def step(carry: Any, at: Any, cell: Any = cell) -> Any:
                carry = jax.vmap(cell)(at, carry)
                return carry, carry[0]

            last, x = jax.lax.scan(step, carry, x)
            after.append(last)
        return jax.vmap(jax.vmap(head))(x).swapaxes(0, 1), after

    state = np.zeros((sizes["batch_size"], dim), np.float32)
    return params, apply, [(state, state) for _ in cells]


def torch_peer(sizes: dict[str, Any], *, compiled: bool) -> Run:
    """`torch.nn.LSTM`, bfloat16 by autocast, fused Adam; on a GPU if PyTorch has one, else threads as cores."""
    import torch

    from charjax.interop import to_torch

    torch.set_num_threads(available_cores())
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dim, layers = sizes["hidden_dim"], sizes["hidden_layers"]
    lstm, head = torch.nn.LSTM(VOCAB, dim, layers, batch_first=True), torch.nn.Linear(dim, VOCAB)
    module = torch.nn.ModuleDict({"lstm": lstm, "head": head})
    module.load_state_dict({name: torch.as_tensor(array) for name, array in to_torch(initial_params(sizes)).items()})
    module.to(device)
    for name, parameter in lstm.named_parameters():
        # PyTorch keeps two biases that are added up: trained both, they would learn at twice the rate.
        parameter.requires_grad_("bias_hh" not in name)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    ids = torch.from_numpy(windows(sizes["batch_size"])).long().to(device)
    half = sizes["dtype"] == "bfloat16"

    def loss_of(window: Any, state: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            x = torch.nn.functional.one_hot(window[:, :-1], VOCAB).float()
            y, state = lstm(x, state)
            logits = head(y)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten()), state

    loss_of_window = torch.compile(loss_of) if compiled else loss_of
    state, cursor = None, 0

    def run(steps: int) -> float:
        nonlocal state, cursor
        for _ in range(steps):
            state = None if cursor == 0 else state
            optimizer.zero_grad()
            loss, state = loss_of_window(ids[cursor], state)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            state = tuple(part.detach() for part in state)
            cursor = (cursor + 1) % WINDOWS
        return float(loss)

    return run


def windows(batch_size: int) -> np.ndarray:
    """[WINDOWS, B, T + 1] int32, the same windows that charjax cuts."""
    rows = text_ids(batch_size)
    starts = np.arange(batch_size) * WINDOWS * SEQ_LEN
    return np.stack(
        [np.stack([rows[s + w * SEQ_LEN : s + (w + 1) * SEQ_LEN + 1] for s in starts]) for w in range(WINDOWS)]
    ).astype(np.int32)


PEERS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "charjax": lambda sizes: charjax_peer(sizes, implementation=None, all_cores=True),
    "custom_vjp": lambda sizes: charjax_peer(sizes, implementation="custom_vjp", all_cores=True),
    "lax.scan": lambda sizes: charjax_peer(sizes, implementation="scan", all_cores=False),
    "flax": lambda sizes: jax_peer(sizes, flax_model),
    "equinox": lambda sizes: jax_peer(sizes, equinox_model),
    "torch": lambda sizes: torch_peer(sizes, compiled=False),
    "torch compiled": lambda sizes: torch_peer(sizes, compiled=True),
}


def peak_gflops(dtype: str) -> float:
    """The machine's matrix-product rate, of 2048 x 2048 matrices in JAX, in GFLOP/s."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (2048, 2048)).astype(dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def _reset_peak_memory() -> float:
    """Starts the measure of peak memory anew: -> megabytes in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak_memory(peer: str, before: float) -> float:
    """Megabytes above `before` at the highest, of the GPU where the peer runs on one, which counts from its start."""
    if peer.startswith("torch"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
    else:
        import jax

        stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 2**20
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """A field of /proc/self/status in megabytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _serve(peer: str, answer: Any) -> None:
    run: Run | None = None
    before = 0.0
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "peak":
            reply = {"gflops": peak_gflops(command["dtype"])}
        elif command["do"] == "set up":
            run = None
            before = _reset_peak_memory()
            run = PEERS[peer](command["sizes"])
            start = time.perf_counter()
            first = run(1)
            reply = {"first_step_seconds": time.perf_counter() - start}
            reply["losses"] = [first, *(run(1) for _ in range(command["losses"] - 1))]
        else:
            assert run is not None
            start = time.perf_counter()
            run(command["steps"])
            reply = {"seconds": time.perf_counter() - start, "peak_megabytes": _peak_memory(peer, before)}
        print(json.dumps(reply), file=answer, flush=True)


if __name__ == "__main__":
    # Answers go where no library prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(sys.argv[1], answers)
