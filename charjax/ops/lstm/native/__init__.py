"""The fastest implementation on processors: one layer, forward and backward, as two custom calls written in C++.

What a compiler of array programs cannot do is done here: weights are packed once for all steps, the four gates of a
tile are applied while its sums are still in registers, and a block of steps gives its share of the weights' gradients
while it is in the cache. It is compiled when charjax is installed, once for each instruction set that pays; the best of
them that the processor has is loaded. benchmarks/NOTES.md says what each choice gave.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.host.cpu import available_cores
from charjax.ops.lstm.target import target_platform
from charjax.ops.lstm.vma import alike, result

# Best first; training in bfloat16 takes the first.
INSTRUCTION_SETS = ("avx512bf16", "avx512", "avx2", "generic")
STEP_DTYPES = ("float32", "bfloat16", "int8")


class Library(NamedTuple):
    """A compiled form of the kernel that this processor can run.

    Attributes:
        instructions: one of INSTRUCTION_SETS.
        panel: units to a vector; arrays saved for the backward pass are padded to a multiple of it.
        bytes_at_once: int8 weights of a column that one multiplication takes.
        dtypes: formats of operands that it trains with; it generates with weights of all of STEP_DTYPES.
    """

    instructions: str
    panel: int
    bytes_at_once: int
    dtypes: tuple[str, ...]

    def target(self, direction: str, dtype: str) -> str:
        """The name of a custom call."""
        return f"charjax_lstm_{direction}_{dtype}_{self.instructions}"


@functools.cache
def libraries() -> tuple[Library, ...]:
    """The compiled forms that are installed and run on this processor, best first; registers their custom calls."""
    found = []
    for instructions in INSTRUCTION_SETS:
        for path in sorted(Path(__file__).parent.glob(f"_{instructions}.*so")):
            kernel = ctypes.CDLL(str(path))
            if kernel.charjax_lstm_supported():
                dtypes = ("float32", "bfloat16") if instructions == "avx512bf16" else ("float32",)
                library = Library(
                    instructions, kernel.charjax_lstm_panel(), kernel.charjax_lstm_bytes_at_once(), dtypes
                )
                served = {"forward": dtypes, "backward": dtypes, "generate": STEP_DTYPES}
                for direction, formats in served.items():
                    for dtype in formats:
                        call = jax.ffi.pycapsule(getattr(kernel, f"charjax_lstm_{direction}_{dtype}"))
                        jax.ffi.register_ffi_target(library.target(direction, dtype), call, platform="cpu")
                found.append(library)
    return tuple(found)


def library_for(dtype: str) -> Library | None:
    """The best compiled form for operands of a dtype, or None where there is none."""
    return next((library for library in libraries() if dtype in library.dtypes), None)


def lstm_native(
    weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype, library: Library | None = None
) -> tuple[Array, LSTMCarry]:
    """The implementation of `charjax.ops.lstm` in C++, for processors.

    Raises:
        NotImplementedError: the target is no processor, this one cannot run it for that dtype, or it was not compiled.
    """
    if (platform := target_platform()) != "cpu":
        raise NotImplementedError(
            f"LSTM implementation 'native' serves processors alone, not the platform {platform!r}"
        )
    library = library or library_for(dtype.name)
    if library is None or dtype.name not in library.dtypes:
        raise NotImplementedError(
            f"LSTM implementation 'native' is not there for {dtype.name} on this machine: float32 takes AVX2 and FMA, "
            "bfloat16 AVX-512 with bf16, and both a C++ compiler when charjax is installed"
        )
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    # The kernel reads ids of one width.
    x = x.astype(jnp.int32 if one_hot else dtype)
    y, c, h = _layer(*alike((*weights, x, *carry)), library, dtype.name)
    return y, LSTMCarry(c, h)


def threads_of_a_call() -> int:
    """What a call may use: the cores, shared out over the devices that JAX makes of them."""
    return max(1, available_cores() // jax.local_device_count("cpu"))


def _call(
    library: Library, direction: str, dtype: str, shapes: dict[str, tuple[Any, ...]], *args: Array
) -> list[Array]:
    results = [result(args[0], *of) for of in shapes.values()]
    call = jax.ffi.ffi_call(library.target(direction, dtype), results, vmap_method="sequential")
    return list(call(*args, threads=np.int64(threads_of_a_call())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _layer(
    w_ih: Array, w_hh: Array, bias: Array, x: Array, c: Array, h: Array, library: Library, dtype: str
) -> tuple[Array, Array, Array]:
    return _forward(w_ih, w_hh, bias, x, c, h, library, dtype, save=False)[:3]


def _forward(
    w_ih: Array, w_hh: Array, bias: Array, x: Array, c: Array, h: Array, library: Library, dtype: str, *, save: bool
) -> tuple[Array, Array, Array, Array, Array]:
    batch, time, hidden = x.shape[0], x.shape[1], c.shape[1]
    padded = -(-hidden // library.panel) * library.panel if save else 0
    shapes = {
        "y": ((batch, time, hidden), dtype),
        "c_last": (c.shape, "float32"),
        "h_last": (h.shape, "float32"),
        "saved_c": ((time, batch, padded), dtype),
        "saved_gates": ((time, batch, 4 * padded), dtype),
    }
    return tuple(_call(library, "forward", dtype, shapes, x, w_ih, w_hh, bias, c, h))  # type: ignore[return-value]


def _forward_and_save(
    w_ih: Array, w_hh: Array, bias: Array, x: Array, c: Array, h: Array, library: Library, dtype: str
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, c_last, h_last, *saved = _forward(w_ih, w_hh, bias, x, c, h, library, dtype, save=True)
    return (y, c_last, h_last), (x, w_ih, w_hh, c, h, y, *saved)


def _backward(
    library: Library, dtype: str, saved: tuple[Array, ...], cotangents: tuple[Array, Array, Array]
) -> tuple[Any, ...]:
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
    return dw_ih, dw_hh, dbias, np.zeros(x.shape, jax.dtypes.float0) if one_hot else dx, dc, dh


_layer.defvjp(_forward_and_save, _backward)
