"""NVIDIA's own LSTM by `jax.experimental.rnn`: the float32 peer on GPUs.

It serves float32 alone, and not under `jax.vmap`. JAX hands cuDNN the sequences' lengths through the host, which waits
for the device at every call, forward and backward. Tracing alone asks cuDNN for sizes, so nothing can be compiled on a
machine without a GPU. This module has not run on a GPU yet: its tests put JAX's own reference in cuDNN's place.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.target import target_platform
from charjax.ops.lstm.vma import alike, varying_axes

# Settings of `jax_default_matmul_precision` that ask for products in TensorFloat-32.
TF32_SETTINGS = ("high", "tensorfloat32", "TF32_TF32_F32")


def lstm_cudnn(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """The implementation of `charjax.ops.lstm` by cuDNN.

    Products are true float32, unlike those that JAX makes on a GPU by default, unless `jax.default_matmul_precision`
    says "tensorfloat32" (or "high", which is the same to cuDNN).

    Raises:
        NotImplementedError: another dtype, a target that is no GPU, no inputs or no units, or a jaxlib without cuDNN.
    """
    platform = target_platform()
    if platform != "gpu":
        raise NotImplementedError(f"LSTM implementation 'cudnn' serves GPUs alone, not the platform {platform!r}")
    if dtype != jnp.float32:
        raise NotImplementedError(f"LSTM implementation 'cudnn' serves float32 alone, not {dtype.name}; choose it")
    inputs = weights.w_ih.shape[0]
    if not inputs:
        raise NotImplementedError("LSTM implementation 'cudnn' needs inputs, not 0")
    x = _one_hot(x, inputs) if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(dtype)
    tf32 = jax.config.jax_default_matmul_precision in TF32_SETTINGS  # type: ignore[attr-defined]
    # cuDNN has an axis of layers; of its two biases, which it adds up, the second is zero.
    flat = jnp.concatenate(
        [weights.w_ih.T.reshape(-1), weights.w_hh.T.reshape(-1), weights.bias, jnp.zeros_like(weights.bias)]
    )
    y, h, c = _layer(*alike((x, carry.h[None], carry.c[None], flat)), tf32)
    return y, LSTMCarry(c[0], h[0])


def _one_hot(ids: Array, size: int) -> Array:
    """[B, T] integer -> [B, T, D] float32, NaN where an integer is out of range."""
    valid = (ids >= 0) & (ids < size)
    return jnp.where(valid[..., None], jax.nn.one_hot(ids, size, dtype=jnp.float32), jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _layer(x: Array, h: Array, c: Array, flat: Array, tf32: bool) -> tuple[Array, Array, Array]:
    return _forward(x, h, c, flat, tf32)[0]


def _forward(
    x: Array, h: Array, c: Array, flat: Array, tf32: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    """X [B, T, D]; h and c [1, B, H]; the flat weights -> (y [B, T, H], h, c), and what the backward pass needs."""
    lengths = jnp.full(x.shape[0], x.shape[1], jnp.int32)
    try:
        outputs, saved = rnn.lstm_fwd(x, h, c, flat, lengths, **_setting(x, h, tf32))
    except AttributeError as error:
        # What JAX's own lookup of cuDNN ends in where jaxlib came without it, as on a machine without a GPU.
        raise NotImplementedError("LSTM implementation 'cudnn' is not there: this jaxlib has no cuDNN") from error
    # The operation does not say what its results vary over: they would pass for copies, and gradients through them be
    # summed over the devices.
    axes = varying_axes(x)
    return alike(outputs, axes), alike(saved, axes)


def _backward(tf32: bool, saved: tuple[Array, ...], cotangents: tuple[Array, Array, Array]) -> tuple[Array, ...]:
    x, h = saved[:2]
    dx, dh, dc, dflat, _ = rnn.lstm_bwd(**_setting(x, h, tf32), residuals=saved, gradients=cotangents)
    return dx, dh, dc, dflat


def _setting(x: Array, h: Array, tf32: bool) -> dict[str, Any]:
    return {
        "input_size": x.shape[-1],
        "hidden_size": h.shape[-1],
        "num_layers": 1,
        "dropout": 0.0,
        "bidirectional": False,
        "precision": jax.lax.Precision.HIGH if tf32 else jax.lax.Precision.HIGHEST,
    }


_layer.defvjp(_forward, _backward)
