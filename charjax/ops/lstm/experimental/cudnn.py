"""NVIDIA's LSTM, through `jax.experimental.rnn`, as a float32 baseline for GPUs.

It supports only float32 and does not work under `jax.vmap`. JAX passes sequence lengths to cuDNN through the host,
which synchronizes with the device in every forward and backward call. Even tracing queries cuDNN for sizes, so nothing
can be compiled on a machine without a GPU. On an H200, its outputs and gradients matched float64 NumPy; the tests
replace cuDNN with JAX's reference implementation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.target import target_platform
from charjax.ops.lstm.vma import alike, varying_axes

# Values of `jax_default_matmul_precision` that select TensorFloat-32.
TF32_SETTINGS = ("high", "tensorfloat32", "TF32_TF32_F32")


def lstm_cudnn(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` with cuDNN.

    Unlike JAX's default on a GPU, matmuls are computed in full float32 precision, unless `jax.default_matmul_precision`
    is "tensorfloat32" (or "high", which cuDNN treats the same way).

    Raises:
        NotImplementedError: the dtype is not float32, the platform is not a GPU, there are no inputs, or this jaxlib
            does not include cuDNN.
    """
    platform = target_platform()
    if platform != "gpu":
        raise NotImplementedError(f"LSTM implementation 'cudnn' supports only GPUs, not the platform {platform!r}")
    if dtype != jnp.float32:
        raise NotImplementedError(f"LSTM implementation 'cudnn' supports only float32, not {dtype.name}")
    inputs = weights.w_ih.shape[0]
    if not inputs:
        raise NotImplementedError("LSTM implementation 'cudnn' needs at least one input")
    x = _one_hot(x, inputs) if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(dtype)
    tf32 = jax.config.jax_default_matmul_precision in TF32_SETTINGS  # type: ignore[attr-defined]
    # cuDNN has a layer axis and adds two biases, the second of which is zero here.
    flat = jnp.concatenate(
        [weights.w_ih.T.reshape(-1), weights.w_hh.T.reshape(-1), weights.bias, jnp.zeros_like(weights.bias)]
    )
    y, h, c = _layer(*alike((x, carry.h[None], carry.c[None], flat)), tf32)
    return y, LSTMCarry(c[0], h[0])


def _one_hot(ids: Array, size: int) -> Array:
    """Converts [B, T] integer to one-hot [B, T, D] float32, with NaN where an integer is out of range."""
    valid = (ids >= 0) & (ids < size)
    return jnp.where(valid[..., None], jax.nn.one_hot(ids, size, dtype=jnp.float32), jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _layer(x: Array, h: Array, c: Array, flat: Array, tf32: bool) -> tuple[Array, Array, Array]:
    return _forward(x, h, c, flat, tf32)[0]


def _forward(
    x: Array, h: Array, c: Array, flat: Array, tf32: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    """Takes x [B, T, D], h and c [1, B, H] and the flat weights -> (y [B, T, H], h, c) and the residuals."""
    lengths = jnp.full(x.shape[0], x.shape[1], jnp.int32)
    try:
        outputs, saved = rnn.lstm_fwd(x, h, c, flat, lengths, **_setting(x, h, tf32))
    except AttributeError as error:
        # JAX raises this if jaxlib does not include cuDNN, e.g. on a machine without a GPU.
        raise NotImplementedError(
            "LSTM implementation 'cudnn' is not available, because this jaxlib does not include it; "
            'install it with pip install "charjax[cuda]"'
        ) from error
    # The operation does not declare which axes its results vary over, so they would be treated as replicated and their
    # gradients would be summed over the devices.
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
