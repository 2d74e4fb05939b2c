"""`lstm` and `lstm_stack`: the doors to every implementation of an LSTM layer, and of a stack of them."""

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.ops.lstm.custom_vjp import lstm_custom_vjp
from charjax.ops.lstm.dropout import drop
from charjax.ops.lstm.native import library_for, lstm_native
from charjax.ops.lstm.recompute import lstm_recompute
from charjax.ops.lstm.reference import lstm_flax
from charjax.ops.lstm.scan import lstm_scan
from charjax.ops.lstm.target import target_platform
from charjax.ops.lstm.wavefront import lstm_wavefront, run_stack

Implementation = Callable[[LSTMWeights, Array, LSTMCarry, jnp.dtype], tuple[Array, LSTMCarry]]


def _on_demand(name: str) -> Implementation:
    """`lstm_NAME` of this package's module NAME, imported when it runs: Pallas takes a tenth of a second to import."""

    def run(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
        module = importlib.import_module(f"charjax.ops.lstm.{name}")
        result: tuple[Array, LSTMCarry] = getattr(module, f"lstm_{name}")(weights, x, carry, dtype)
        return result

    return run


IMPLEMENTATIONS: dict[str, Implementation] = {
    "flax": lstm_flax,
    "scan": lstm_scan,
    "custom_vjp": lstm_custom_vjp,
    "native": lstm_native,
    "recompute": lstm_recompute,
    "wavefront": lstm_wavefront,
    "cudnn": _on_demand("cudnn"),
    "mosaic_gpu": _on_demand("mosaic_gpu"),
    "mosaic_tpu": _on_demand("mosaic_tpu"),
}
DTYPES = ("float32", "bfloat16")
LEAST_STEPS_TO_PACK_FOR = 8


def lstm(
    weights: LSTMWeights,
    x: Array,
    carry: LSTMCarry,
    *,
    implementation: str | None = None,
    dtype: str = "float32",
) -> tuple[Array, LSTMCarry]:
    """Runs one LSTM layer (Hochreiter and Schmidhuber 1997, with forget gates) over a batch of sequences.

    With z_t = x_t w_ih + h_{t-1} w_hh + bias, split into i, f, g, o:
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) and h_t = sigmoid(o) tanh(c_t), as in torch.nn.LSTM.

    Args:
        weights: parameters of the layer, float32, with D inputs and H hidden units.
        x: [B, T, D] float inputs; or [B, T] integers in [0, D), which stand for one-hot rows and turn the
            input product into a row look-up (an integer outside that range gives NaN).
        carry: state before the first step, `c` and `h` [B, H] float32.
        implementation: "flax" (`flax.linen.scan` of `LSTMCell`, the reference), "scan" (`jax.lax.scan`, the
            input product hoisted out of the loop), "custom_vjp" (a hand-written backward pass), "native" (C++, for
            processors; see `charjax.ops.lstm.native`), "recompute" (for TPUs), "wavefront" (for GPUs; see
            `lstm_stack`), "cudnn" (NVIDIA's, for GPUs in float32), "mosaic_gpu" (kernels for Hopper GPUs in bfloat16)
            and "mosaic_tpu" (kernels for TPUs), which were compiled but never ran on one, or None for the fastest that
            serves on the platform that is compiled for, of those that were measured or need no kernel.
        dtype: "float32" or "bfloat16", the format of the products' operands; sums, gates and cell state are
            float32 in both.

    Returns:
        y [B, T, H] in `dtype`, the hidden state after every step, and the carry after the last one (float32).

    Raises:
        ValueError: shapes that do not fit together.
        NotImplementedError: an unknown implementation or dtype, or one that does not serve on the platform that is
            compiled for, on this machine or at this size.
    """
    name = _check(weights, x, carry, implementation, dtype)
    if not _anything_to_do(weights, x):
        return jnp.zeros((*x.shape[:2], weights.w_hh.shape[0]), dtype), carry
    return IMPLEMENTATIONS[name](weights, _in_range_or_not(x, weights), carry, jnp.dtype(dtype))


def lstm_stack(
    weights: Sequence[LSTMWeights],
    x: Array,
    carry: Sequence[LSTMCarry],
    *,
    keep: Sequence[Array] = (),
    rate: float = 0.0,
    implementation: str | None = None,
    dtype: str = "float32",
) -> tuple[Array, tuple[LSTMCarry, ...]]:
    """Runs L layers of H units, each of which reads the one below; mathematics, arguments and errors as for `lstm`.

    "wavefront" runs all layers in one loop (Appleyard et al. 2016); the others run them one after the other.

    Args:
        weights: parameters per layer; layer 0 reads x, the others H inputs.
        x: [B, T, D] float or [B, T] integer.
        carry: state per layer before the first step, [B, H] float32.
        keep: [B, T, H] bool per layer but the last, or nothing: what of a layer's output dropout leaves to the layer
            above it, scaled by 1 / (1 - rate); the recurrent state does not see it.
        rate: probability that `keep` was drawn by.
        implementation: see `lstm`.
        dtype: see `lstm`.

    Returns:
        y [B, T, H] in `dtype`, the last layer's hidden state after every step, and the carry per layer.
    """
    names = {
        _check(layer, x if n == 0 else _outputs(x, layer), before, implementation, dtype)
        for n, (layer, before) in enumerate(zip(weights, carry, strict=True))
    }
    _check_keep(keep, weights, x)
    if names == {"wavefront"} and _anything_to_do(weights[0], x):
        x = _in_range_or_not(x, weights[0])
        return run_stack(tuple(weights), x, tuple(carry), tuple(keep), rate, jnp.dtype(dtype))
    after = []
    for n, (layer, before) in enumerate(zip(weights, carry, strict=True)):
        x, last = lstm(layer, x, before, implementation=implementation, dtype=dtype)
        x = drop(x, keep[n], rate) if n < len(keep) else x
        after.append(last)
    return x, tuple(after)


def default_dtype() -> str:
    """The format of operands that is faster on this machine: bfloat16 wherever its products have hardware."""
    return "bfloat16" if target_platform() != "cpu" or library_for("bfloat16") else "float32"


def default_implementation(dtype: str, time: int) -> str:
    """What `implementation=None` stands for, for sequences of so many steps; logs the choice when it is first made."""
    platform = target_platform()
    # For a few steps, as in generation, packing the weights would take longer than what it saves.
    if platform == "cpu" and time < LEAST_STEPS_TO_PACK_FOR:
        return "custom_vjp"
    return _default_for_sequences(dtype, platform)


@functools.cache
def _default_for_sequences(dtype: str, platform: str) -> str:
    library = library_for(dtype) if platform == "cpu" else None
    choice = {"gpu": "wavefront", "tpu": "recompute"}.get(platform, "native" if library else "custom_vjp")
    detail = f" ({library.instructions})" if library else ""
    logging.getLogger("charjax").info("LSTM implementation: %s%s, %s products", choice, detail, dtype)
    return choice


def _check(weights: LSTMWeights, x: Any, carry: LSTMCarry, implementation: str | None, dtype: str) -> str:
    """The name of the implementation, after `lstm`'s checks."""
    _check_shapes(weights, x, carry)
    if dtype not in DTYPES:
        raise NotImplementedError(f"dtype {dtype!r} is not served; choose one of {', '.join(DTYPES)}")
    name = implementation or default_implementation(dtype, x.shape[1])
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"LSTM implementation {name!r} does not exist; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    return name


def _anything_to_do(weights: LSTMWeights, x: Array) -> bool:
    return 0 not in (*x.shape[:2], weights.w_hh.shape[0])


def _in_range_or_not(x: Array, weights: LSTMWeights) -> Array:
    """Integers as implementations take them: int32, wide enough to be compared with D, and D for negative ones."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return x
    ids = x.astype(jnp.int32)
    return jnp.where(ids < 0, weights.w_ih.shape[0], ids)


def _check_keep(keep: Sequence[Array], weights: Sequence[LSTMWeights], x: Array) -> None:
    if not weights:
        raise ValueError("a stack of LSTM layers needs at least one")
    shape = (*x.shape[:2], weights[0].w_hh.shape[0])
    if keep and (len(keep) != len(weights) - 1 or any(mask.shape != shape or mask.dtype != bool for mask in keep)):
        raise ValueError(
            f"keep must be {len(weights) - 1} bool masks of {shape}, one for each layer but the last, not "
            + ", ".join(f"{mask.shape} {mask.dtype}" for mask in keep)
        )


def _outputs(x: Array, layer: LSTMWeights) -> jax.ShapeDtypeStruct:
    """What the layer below gives to a layer, where all have as many units."""
    return jax.ShapeDtypeStruct((*x.shape[:2], layer.w_hh.shape[0]), jnp.float32)


def _check_shapes(weights: LSTMWeights, x: Any, carry: LSTMCarry) -> None:
    inputs, gates = weights.w_ih.shape
    hidden = weights.w_hh.shape[0]
    if gates != 4 * hidden or weights.w_hh.shape != (hidden, gates) or weights.bias.shape != (gates,):
        raise ValueError(
            "LSTM weights must be w_ih [D, 4H], w_hh [H, 4H] and bias [4H], not "
            f"{weights.w_ih.shape}, {weights.w_hh.shape} and {weights.bias.shape}"
        )
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    if x.ndim != (2 if one_hot else 3) or not (one_hot or x.shape[-1] == inputs):
        raise ValueError(f"LSTM input must be [B, T, {inputs}] float or [B, T] integer, not {x.shape} {x.dtype}")
    state = (x.shape[0], hidden)
    if carry.c.shape != state or carry.h.shape != state:
        raise ValueError(f"LSTM carry must be c and h of {state}, not {carry.c.shape} and {carry.h.shape}")
