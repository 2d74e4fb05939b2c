"""The implementation for Hopper GPUs: one layer over a whole sequence, with one forward and one backward kernel.

The kernels are written in Pallas for Mosaic GPU. For the whole sequence, the recurrent weights stay in shared memory
and the cell state in registers. Each step is one round of tensor core matmuls; its inputs are copied asynchronously, a
step ahead, and so are its outputs. The input product, the recomputed gates and the weight gradients are left to XLA, as
in `recompute`.

These kernels have been compiled for an H100 and run in interpret mode on a CPU, but never on a GPU; their speed is
unknown, and they are never chosen by default.
"""

import functools
from typing import Any

import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.experimental.mosaic_gpu.backward import backward_kernel
from charjax.ops.lstm.experimental.mosaic_gpu.forward import forward_kernel
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import (
    geometry_for,
    state_from_kernel,
    state_to_kernel,
    steps_from_kernel,
    steps_to_kernel,
    weights_backward,
    weights_forward,
)
from charjax.ops.lstm.recompute import Factors, Loops, run_layer
from charjax.ops.lstm.target import target_is_hopper, target_kind


def lstm_mosaic_gpu(
    weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype, interpret: Any = None
) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` for Hopper GPUs, in bfloat16.

    Args:
        weights: the parameters of the layer, with up to 512 hidden units.
        x: as in `lstm`.
        carry: as in `lstm`.
        dtype: bfloat16.
        interpret: Pallas's parameters for interpreting the kernels on any platform, or None to compile them.

    Raises:
        NotImplementedError: the dtype is not bfloat16, there are too many hidden units, or the target is not a Hopper
            GPU.
    """
    if interpret is None and not target_is_hopper():
        raise NotImplementedError(f"LSTM implementation 'mosaic_gpu' supports only Hopper GPUs, not {target_kind()!r}")
    if dtype != jnp.bfloat16:
        raise NotImplementedError(f"LSTM implementation 'mosaic_gpu' supports only bfloat16, not {dtype.name}")
    geometry_for(weights.w_hh.shape[0], flat=interpret is not None)
    return run_layer(make_loops(interpret), weights, x, carry, dtype)


@functools.cache
def make_loops(interpret: Any = None) -> Loops:
    """Returns the loops over time as kernels, for `recompute.run_layer`; `interpret` as in `lstm_mosaic_gpu`."""
    return Loops(functools.partial(_forward, interpret), functools.partial(_backward, interpret))


def _forward(interpret: Any, z: Array, w_hh: Array, carry: LSTMCarry) -> tuple[Array, Array, LSTMCarry]:
    batch, hidden = z.shape[1], w_hh.shape[0]
    geometry = geometry_for(hidden, flat=interpret is not None)
    h, c, c_last, h_last = forward_kernel(
        geometry,
        steps_to_kernel(z, 4, geometry),
        weights_forward(w_hh, geometry),
        state_to_kernel(carry.c, geometry),
        state_to_kernel(carry.h.astype(w_hh.dtype), geometry),
        interpret,
    )
    last = LSTMCarry(*(state_from_kernel(state, batch, hidden) for state in (c_last, h_last)))
    return steps_from_kernel(h, 1, batch, hidden), steps_from_kernel(c, 1, batch, hidden), last


def _backward(interpret: Any, dy: Array, factors: Factors, w_hh: Array, last: LSTMCarry) -> tuple[Array, LSTMCarry]:
    _, batch, hidden = dy.shape
    geometry = geometry_for(hidden, flat=interpret is not None)
    dz, *first = backward_kernel(
        geometry,
        tuple(steps_to_kernel(array, 1, geometry) for array in (dy, *factors)),
        weights_backward(w_hh, geometry),
        state_to_kernel(last.c, geometry),
        state_to_kernel(last.h, geometry),
        interpret,
    )
    carry = LSTMCarry(*(state_from_kernel(state, batch, hidden) for state in first))
    return steps_from_kernel(dz, 4, batch, hidden), carry
