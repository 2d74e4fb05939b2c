"""The kernels of `mosaic_gpu` alone: seconds of a layer's whole sequence, forward and backward."""

import jax
import jax.numpy as jnp

from benchmarks.peers.device_limits import seconds_of
from charjax.ops.lstm.experimental.mosaic_gpu.backward import FACTORS, backward_kernel
from charjax.ops.lstm.experimental.mosaic_gpu.forward import forward_kernel
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import geometry_for


def measure(kernel: str, hidden_dim: int, batch_size: int, columns: int, seq_len: int) -> dict[str, float]:
    """Returns the "seconds" of the "forward" or the "backward" kernel; `columns` is the number of sequences per cluster.

    Raises:
        NotImplementedError: the target is not a Hopper GPU, or there are too many units.
    """
    if jax.default_backend() != "gpu":
        raise NotImplementedError("the kernels need a Hopper GPU")
    geometry = geometry_for(hidden_dim, flat=False)._replace(columns=columns)
    hidden, batch = geometry.hidden, -(-batch_size // columns) * columns

    def random(*shape: int, dtype: str = "bfloat16") -> jax.Array:
        return 0.1 * jax.random.normal(jax.random.key(len(shape)), shape, dtype)

    state = random(hidden, batch, dtype="float32")
    if kernel == "forward":
        run = jax.jit(lambda *arrays: forward_kernel(geometry, *arrays, interpret=None))
        arrays = random(4 * seq_len, hidden, batch), random(4, hidden, hidden), state, random(hidden, batch)
        return {"seconds": seconds_of(run, *arrays)}
    run = jax.jit(lambda steps, *arrays: backward_kernel(geometry, steps, *arrays, interpret=None))
    steps = tuple(random(seq_len, hidden, batch) for _ in range(FACTORS))
    return {"seconds": seconds_of(run, steps, random(hidden, 4 * hidden), state, state)}
