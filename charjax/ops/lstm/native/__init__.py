"""The fastest implementation on CPUs: one layer, forward and backward, as two custom calls written in C++.

It does what XLA cannot: it packs the weights once for all steps, applies the four gates of a tile while its sums are in
registers, and computes a block's contribution to the weight gradients while its dz is in the cache. The kernel is
compiled for each instruction set when charjax is installed, and the best form that the CPU supports is loaded.
docs/performance.md describes what each choice gained.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.host.cpu import available_cores
from charjax.ops.lstm.native.libraries import Library, library_for
from charjax.ops.lstm.target import target_platform
from charjax.ops.lstm.vma import alike, result


def lstm_native(
    weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype, library: Library | None = None
) -> tuple[Array, LSTMCarry]:
    """Implements `charjax.ops.lstm` in C++, for CPUs.

    Raises:
        NotImplementedError: the platform is not a CPU, the CPU does not support the dtype, or the kernel is not
            compiled.
    """
    if (platform := target_platform()) != "cpu":
        raise NotImplementedError(f"LSTM implementation 'native' supports only CPUs, not the platform {platform!r}")
    library = library or library_for(dtype.name)
    if library is None or dtype.name not in library.dtypes:
        raise NotImplementedError(
            f"LSTM implementation 'native' is not available for {dtype.name} on this machine: float32 requires AVX2 "
            "and FMA, bfloat16 requires AVX-512 with bf16, and both require a C++ compiler when charjax is installed"
        )
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    # The kernel reads only int32 ids.
    x = x.astype(jnp.int32 if one_hot else dtype)
    y, c, h = _layer(alike((x, *weights, *carry)), library, dtype.name)
    return y, LSTMCarry(c, h)


def threads_of_a_call() -> int:
    """Returns the number of threads per call: the available cores divided by the number of JAX's CPU devices."""
    return max(1, available_cores() // jax.local_device_count("cpu"))


def _call(
    library: Library, direction: str, dtype: str, shapes: dict[str, tuple[Any, ...]], *args: Array
) -> list[Array]:
    results = [result(args[0], *of) for of in shapes.values()]
    call = jax.ffi.ffi_call(library.target(direction, dtype), results, vmap_method="sequential")
    return list(call(*args, threads=np.int64(threads_of_a_call())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _layer(args: tuple[Array, ...], library: Library, dtype: str) -> tuple[Array, ...]:
    return _forward(args, library, dtype, save=False)[:3]


def _forward(args: tuple[Array, ...], library: Library, dtype: str, *, save: bool) -> tuple[Array, ...]:
    """Takes x, w_ih, w_hh, bias, c and h -> y, c, h and the residuals for the backward pass (empty without `save`)."""
    x, *_, c, h = args
    batch, time, hidden = x.shape[0], x.shape[1], c.shape[1]
    padded = -(-hidden // library.panel) * library.panel if save else 0
    shapes = {
        "y": ((batch, time, hidden), dtype),
        "c_last": (c.shape, "float32"),
        "h_last": (h.shape, "float32"),
        "saved_c": ((time, batch, padded), dtype),
        "saved_gates": ((time, batch, 4 * padded), dtype),
    }
    return tuple(_call(library, "forward", dtype, shapes, *args))


def _forward_and_save(
    args: tuple[Array, ...], library: Library, dtype: str
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    y, c_last, h_last, *saved = _forward(args, library, dtype, save=True)
    x, w_ih, w_hh, _, c, h = args
    return (y, c_last, h_last), (x, w_ih, w_hh, c, h, y, *saved)


def _backward(
    library: Library, dtype: str, saved: tuple[Array, ...], cotangents: tuple[Array, ...]
) -> tuple[tuple[Any, ...]]:
    x, w_ih, w_hh, c, h, *_ = saved
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    shapes = {
        "dx": ((0,) if one_hot else x.shape, dtype),
        "dw_ih": (w_ih.shape, "float32"),
        "dw_hh": (w_hh.shape, "float32"),
        "dbias": (w_hh.shape[1:], "float32"),
        "dc": (c.shape, "float32"),
        "dh": (h.shape, "float32"),
    }
    dx, dw_ih, dw_hh, dbias, dc, dh = _call(library, "backward", dtype, shapes, *alike((*saved, *cotangents)))
    return ((np.zeros(x.shape, jax.dtypes.float0) if one_hot else dx, dw_ih, dw_hh, dbias, dc, dh),)


_layer.defvjp(_forward_and_save, _backward)
