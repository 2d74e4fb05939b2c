"""Estimates how long a training step takes on a GPU or TPU from launches, bytes and arithmetic; nothing is measured.

All assumptions:

- A launch costs `launch_seconds` whatever it does: the time from the start of one small kernel to the start of the
  next, which depends on it, inside a CUDA graph. Kernels of this size commonly take 2 microseconds; the host is assumed
  never to be slower. On a TPU the compiler's own cycles replace the model.
- A loop reads its weights once per time step and direction, from the level-2 cache where they fit, else from memory.
- Each activation is written once and read once: per layer z and dz [B, 4H], h and c [B, H], in bfloat16.
- Arithmetic and bytes overlap: a step takes the longer of the two, plus the launches.
- Matrix products run at `efficiency` of the stated peak. The level-2 cache's bandwidth is what is commonly measured on
  an H100.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Device:
    """What a device is assumed to do; peaks as its maker states them.

    Attributes:
        flops: bfloat16 operations per second.
        memory: bytes per second from memory.
        cache: bytes per second from the level-2 cache.
        cache_bytes: its size.
        launch_seconds: see above.
        efficiency: share of the peak that matrix products of this size reach.
        hertz: clock that turns the compiler's cycles into seconds; 0 where there are no cycles.
    """

    flops: float
    memory: float
    cache: float
    cache_bytes: float
    launch_seconds: float
    efficiency: float
    hertz: float = 0.0


H100 = Device(flops=989e12, memory=3.35e12, cache=5.5e12, cache_bytes=50e6, launch_seconds=2e-6, efficiency=0.5)
V5E = Device(
    flops=197e12, memory=0.82e12, cache=0.82e12, cache_bytes=0, launch_seconds=0.0, efficiency=1.0, hertz=1.5e9
)  # 1.5 GHz: four 128 x 128 multipliers make 197 TFLOP/s at that clock
V6E = Device(
    flops=918e12, memory=1.64e12, cache=1.64e12, cache_bytes=0, launch_seconds=0.0, efficiency=1.0, hertz=1.75e9
)
DEVICES = {"h100": H100, "v5e": V5E, "v6e": V6E}


def training_flops(hidden_dim: int, hidden_layers: int, vocab_size: int, chars: int) -> int:
    """Counts the operations of a training step: three times those of the forward matrix products."""
    return 3 * chars * (8 * hidden_dim**2 * (2 * hidden_layers - 1) + 2 * hidden_dim * vocab_size)


def training_bytes(hidden_dim: int, hidden_layers: int, batch_size: int, seq_len: int) -> tuple[int, int]:
    """Returns the bytes (of weights in the loops, of activations) that a training step moves, in bfloat16."""
    matrices = 2 * hidden_layers - 1
    weights = 2 * seq_len * matrices * 4 * hidden_dim**2 * 2
    activations = 2 * hidden_layers * seq_len * batch_size * (2 * 4 + 2) * hidden_dim * 2
    return weights, activations


def training_seconds(
    device: Device, *, launches_per_time_step: float, cycles: float | None, sizes: dict[str, Any], vocab_size: int
) -> float:
    """Estimates one step of [B, T] characters on one device, from the compiler's launches or cycles."""
    if cycles:
        return cycles / device.hertz
    hidden, layers, batch, time = (sizes[n] for n in ("hidden_dim", "hidden_layers", "batch_size", "seq_len"))
    flops = training_flops(hidden, layers, vocab_size, batch * time)
    weights, activations = training_bytes(hidden, layers, batch, time)
    cached = (2 * layers - 1) * 4 * hidden**2 * 2 <= device.cache_bytes
    moved = weights / (device.cache if cached else device.memory) + activations / device.memory
    work = max(flops / (device.flops * device.efficiency), moved)
    return launches_per_time_step * time * device.launch_seconds + work
