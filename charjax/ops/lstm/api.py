"""`lstm` and `lstm_stack`, the common interface to all implementations of an LSTM layer or a stack of layers."""

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.host.jax_modes import in_default_modes
from charjax.ops.lstm import wavefront
from charjax.ops.lstm.custom_vjp import lstm_custom_vjp
from charjax.ops.lstm.dropout import drop
from charjax.ops.lstm.native import lstm_native
from charjax.ops.lstm.native.libraries import better_form, library_for
from charjax.ops.lstm.recompute import lstm_recompute
from charjax.ops.lstm.reference import lstm_flax
from charjax.ops.lstm.scan import lstm_scan
from charjax.ops.lstm.second_order import with_higher_derivatives
from charjax.ops.lstm.target import target_platform

Arrays = TypeVar("Arrays", LSTMWeights, LSTMCarry)
Implementation = Callable[[LSTMWeights, Array, LSTMCarry, jnp.dtype], tuple[Array, LSTMCarry]]


# Modules of charjax.ops.lstm.experimental.
EXPERIMENTAL = {"cudnn": "cudnn", "mosaic_gpu": "mosaic_gpu.stack", "mosaic_tpu": "mosaic_tpu.kernels"}


def _experimental(name: str) -> Implementation:
    """Returns an experimental implementation, imported on first use because importing Pallas takes 0.1 s."""

    def run(weights: LSTMWeights, x: Array, carry: LSTMCarry, dtype: jnp.dtype) -> tuple[Array, LSTMCarry]:
        result: tuple[Array, LSTMCarry] = getattr(_experimental_module(name), f"lstm_{name}")(weights, x, carry, dtype)
        return result

    return run


def _experimental_module(name: str) -> Any:
    return importlib.import_module(f"charjax.ops.lstm.experimental.{EXPERIMENTAL[name]}")


IMPLEMENTATIONS: dict[str, Implementation] = {
    "flax": lstm_flax,
    "scan": lstm_scan,
    "custom_vjp": lstm_custom_vjp,
    "native": lstm_native,
    "recompute": lstm_recompute,
    "wavefront": wavefront.lstm_wavefront,
    **{name: _experimental(name) for name in EXPERIMENTAL},
}
# JAX differentiates these automatically, any number of times and in forward mode too.
DIFFERENTIATED_BY_JAX = (lstm_flax, lstm_scan)
# These have a `run_stack` in addition to the function for one layer.
ALL_LAYERS_AT_ONCE = ("wavefront", "mosaic_gpu")
# The implementations for None on accelerators, whatever the size and dtype until measurements say otherwise. GPU:
# benchmarks/results/gpu-limits-2026-11-27-2306-NVIDIA-H200.json (2 x 512, bfloat16, 64 and 1024 sequences). TPU:
# compiled-v5e-2x2-2026-11-25-0028.json, by the compiler's estimate.
ON_ACCELERATORS = {"gpu": "wavefront", "tpu": "recompute"}
DTYPES = ("float32", "bfloat16")
MIN_STEPS_FOR_NATIVE = 8


@in_default_modes
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
        weights: the layer's parameters, converted to float32, for D inputs and H hidden units.
        x: [B, T, D] float inputs; or [B, T] integers in [0, D), which act as one-hot rows and turn the input product
            into a row lookup (an out-of-range integer gives NaN).
        carry: the state before the first step, `c` and `h` [B, H], converted to float32.
        implementation: None for the fastest one on the target platform, or one of "flax" (`flax.linen.scan` over
            `LSTMCell`, the reference), "scan" (`jax.lax.scan`, with the input product hoisted out of the loop),
            "custom_vjp" (a hand-written backward pass), "native" (C++, for CPUs; see `charjax.ops.lstm.native`),
            "recompute" (for TPUs), "wavefront" (for GPUs; see `lstm_stack`). Experimental and never chosen by default:
            "cudnn" (NVIDIA's, for GPUs in float32), "mosaic_gpu" (kernels for Hopper GPUs) and "mosaic_tpu" (kernels
            for TPUs), of which the last two have been compiled but never run on their target device.
        dtype: the matmul operand format, "float32" or "bfloat16"; sums, gates and the cell state are float32 in either
            case.

    Returns:
        y [B, T, H] in `dtype`, the hidden state after every step, and the carry after the last one (float32).

    Raises:
        ValueError: shapes are inconsistent, or the carry is not an `LSTMCarry`.
        NotImplementedError: the implementation or dtype is unknown or does not support the target platform, this
            machine or this size.

    Examples:
        >>> import jax.numpy as jnp
        >>> from charjax import LSTMCarry, LSTMWeights, ops
        >>> weights = LSTMWeights(jnp.zeros((5, 32)), jnp.zeros((8, 32)), jnp.zeros(32))
        >>> carry = LSTMCarry(jnp.zeros((2, 8)), jnp.zeros((2, 8)))
        >>> y, carry = ops.lstm(weights, jnp.ones((2, 3, 5)), carry, implementation="scan")
        >>> y.shape, carry.c.shape
        ((2, 3, 8), (2, 8))
    """
    weights, carry = _in_float32(_checked_weights(weights)), _in_float32(_checked_carry(carry))
    name = _check(weights, x, carry, implementation, dtype)
    if not _has_work(weights, x):
        return jnp.zeros((*x.shape[:2], weights.w_hh.shape[0]), dtype), carry
    with _forward_mode_explained():
        return _layer(IMPLEMENTATIONS[name], dtype)(weights, _checked_ids(x, weights), carry)


@in_default_modes
def lstm_stack(
    weights: Sequence[LSTMWeights],
    x: Array,
    carry: Sequence[LSTMCarry],
    *,
    keep: Sequence[Array] = (),
    rate: float | Array = 0.0,
    implementation: str | None = None,
    dtype: str = "float32",
) -> tuple[Array, tuple[LSTMCarry, ...]]:
    """Runs L layers of H units, each reading the one below; equations, arguments and errors are as for `lstm`.

    "wavefront" and "mosaic_gpu" run all layers in a single loop (Appleyard et al. 2016); the others run one layer after
    another.

    Args:
        weights: the parameters of each layer; layer 0 reads x, the others read H inputs.
        x: [B, T, D] float or [B, T] integer.
        carry: the state of each layer before the first step, [B, H] float32.
        keep: dropout masks [B, T, H] bool for all layers but the last, or empty for no dropout. A mask selects the
            outputs that the layer above sees, scaled by 1 / (1 - rate); dropout never applies to the recurrent state.
        rate: the dropout rate of `keep`; it may be traced, but its gradient is zero.
        implementation: see `lstm`.
        dtype: see `lstm`.

    Returns:
        y [B, T, H] in `dtype`, the last layer's hidden state after every step, and the carry of each layer.
    """
    if isinstance(weights, LSTMWeights) or not isinstance(weights, tuple | list):
        raise ValueError(f"weights must be a list of LSTMWeights, one per layer, not {type(weights).__name__}")
    if not isinstance(carry, tuple | list) or len(carry) != len(weights):
        found = f"{len(carry)}" if isinstance(carry, tuple | list) else type(carry).__name__
        raise ValueError(f"carry must be {len(weights)} LSTMCarry, one per layer (see init_carry), not {found}")
    weights = [_in_float32(_checked_weights(layer)) for layer in weights]
    carry = [_in_float32(_checked_carry(before)) for before in carry]
    names = {
        _check(layer, x if n == 0 else _outputs(x, layer), before, implementation, dtype)
        for n, (layer, before) in enumerate(zip(weights, carry, strict=True))
    }
    _check_keep(keep, weights, x)
    if len(names) == 1 and names <= set(ALL_LAYERS_AT_ONCE) and _has_work(weights[0], x):
        x = _checked_ids(x, weights[0])
        with _forward_mode_explained():
            return _all_at_once(*names, dtype)(tuple(weights), x, tuple(carry), tuple(keep), jnp.float32(rate))
    layer = functools.partial(lstm, implementation=implementation, dtype=dtype)
    return _one_by_one(layer, weights, x, carry, keep, rate)


@functools.lru_cache
def _layer(implementation: Implementation, dtype: str) -> Callable[..., tuple[Array, LSTMCarry]]:
    """Returns an implementation that is differentiable any number of times in reverse mode."""

    def run(weights: LSTMWeights, x: Array, carry: LSTMCarry) -> tuple[Array, LSTMCarry]:
        return implementation(weights, x, carry, jnp.dtype(dtype))

    if implementation in DIFFERENTIATED_BY_JAX:
        return run
    return with_higher_derivatives(run, functools.partial(lstm_scan, dtype=jnp.dtype(dtype)))


@functools.lru_cache
def _all_at_once(name: str, dtype: str) -> Callable[..., tuple[Array, tuple[LSTMCarry, ...]]]:
    """Returns `run_stack` of an implementation that runs all layers in one loop, differentiable any number of times."""
    module = wavefront if name == "wavefront" else _experimental_module(name)
    layer = functools.partial(lstm_scan, dtype=jnp.dtype(dtype))
    return with_higher_derivatives(
        functools.partial(module.run_stack, dtype=jnp.dtype(dtype)),
        functools.partial(_one_by_one, layer),
    )


@contextlib.contextmanager
def _forward_mode_explained() -> Iterator[None]:
    """Adds advice to JAX's error about forward mode; under an outer `jit`, JAX raises it later, when compiling."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" in str(error):
            error.add_note('charjax: implementation="scan" and "flax" support forward mode (docs/jax.md)')
        raise


def _one_by_one(
    layer: Callable[..., tuple[Array, LSTMCarry]],
    weights: Sequence[LSTMWeights],
    x: Array,
    carry: Sequence[LSTMCarry],
    keep: Sequence[Array],
    rate: float | Array,
) -> tuple[Array, tuple[LSTMCarry, ...]]:
    """Runs the layers of a stack one after another."""
    after = []
    for n, (one, before) in enumerate(zip(weights, carry, strict=True)):
        x, last = layer(one, x, before)
        x = drop(x, keep[n], rate) if n < len(keep) else x
        after.append(last)
    return x, tuple(after)


def default_dtype() -> str:
    """Returns the faster operand format on this machine: "bfloat16" if the hardware supports bfloat16 matmuls."""
    return "bfloat16" if target_platform() != "cpu" or library_for("bfloat16") else "float32"


def takes_varying(implementation: str | None) -> bool:
    """Returns whether an implementation runs under `jax.shard_map` with check_vma=True, the default."""
    # Pallas cannot update an array in place if its type says that it varies over a mesh axis.
    return implementation != "mosaic_gpu"


def describe_implementation(implementation: str | None, dtype: str, time: int) -> str:
    """Describes the implementation used for sequences of `time` steps and its operand format."""
    name = implementation or default_implementation(dtype, time)
    library = library_for(dtype) if name == "native" else None
    return f"{name}{f' ({library.instructions})' if library else ''}, {dtype} operands"


def default_implementation(dtype: str, time: int) -> str:
    """Returns the implementation that `implementation=None` selects for sequences of `time` steps."""
    platform = target_platform()
    # For just a few steps, as in generation, packing the weights costs more time than it saves.
    if platform == "cpu" and time < MIN_STEPS_FOR_NATIVE:
        return "custom_vjp"
    return _default_for_sequences(dtype, platform)


@functools.cache
def _default_for_sequences(dtype: str, platform: str) -> str:
    library = library_for(dtype) if platform == "cpu" else None
    choice = ON_ACCELERATORS.get(platform, "native" if library else "custom_vjp")
    if platform == "cpu" and (better := better_form()):
        logging.getLogger("charjax").warning(
            "this CPU is faster with the %s form of the LSTM kernel, which is not installed; %s", better, _advice()
        )
    return choice


def _advice() -> str:
    source = Path(__file__).parents[3]
    if (source / "setup.py").is_file():
        return f"charjax was imported from {source}: build the kernel there with pip install --editable {source}"
    return (
        "reinstall charjax with a C++ compiler (CHARJAX_REQUIRE_KERNEL=1 makes the installation fail if a form does "
        "not compile)"
    )


def _check(weights: LSTMWeights, x: Any, carry: LSTMCarry, implementation: str | None, dtype: str) -> str:
    """Checks the arguments of `lstm` and returns the name of the implementation to use."""
    _check_shapes(weights, x, carry)
    if dtype not in DTYPES:
        raise NotImplementedError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    name = implementation or default_implementation(dtype, x.shape[1])
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"LSTM implementation {name!r} does not exist; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    return name


def _checked_weights(weights: LSTMWeights) -> LSTMWeights:
    if not isinstance(weights, LSTMWeights):
        found = type(weights).__name__
        raise ValueError(f"a layer's weights must be LSTMWeights, e.g. LSTMWeights(**cell), not {found}")
    return weights


def _checked_carry(carry: LSTMCarry) -> LSTMCarry:
    if not isinstance(carry, LSTMCarry):
        raise ValueError(f"a layer's carry must be an LSTMCarry (see init_carry), not {type(carry).__name__}")
    return carry


def _in_float32(arrays: Arrays) -> Arrays:
    """Converts weights or a carry to float32, which the kernels expect, from whatever dtype the caller uses."""
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), arrays)


def _has_work(weights: LSTMWeights, x: Array) -> bool:
    return 0 not in (*x.shape[:2], weights.w_hh.shape[0])


def _checked_ids(x: Array, weights: LSTMWeights) -> Array:
    """Converts ids to int32, which is wide enough to compare with D, and maps negative ones to D (out of range)."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return x
    ids = x.astype(jnp.int32)
    return jnp.where(ids < 0, weights.w_ih.shape[0], ids)


def _check_keep(keep: Sequence[Array], weights: Sequence[LSTMWeights], x: Array) -> None:
    if not weights:
        raise ValueError("a stack of LSTM layers needs at least one layer")
    shape = (*x.shape[:2], weights[0].w_hh.shape[0])
    if keep and (len(keep) != len(weights) - 1 or any(mask.shape != shape or mask.dtype != bool for mask in keep)):
        raise ValueError(
            f"keep must be {len(weights) - 1} bool masks of {shape}, one for each layer except the last, not "
            + ", ".join(f"{mask.shape} {mask.dtype}" for mask in keep)
        )


def _outputs(x: Array, layer: LSTMWeights) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of the input that a layer gets from the one below, assuming the same H."""
    return jax.ShapeDtypeStruct((*x.shape[:2], layer.w_hh.shape[0]), jnp.float32)


def _check_shapes(weights: LSTMWeights, x: Any, carry: LSTMCarry) -> None:
    inputs, gates = weights.w_ih.shape
    hidden = weights.w_hh.shape[0]
    if gates != 4 * hidden or weights.w_hh.shape != (hidden, gates) or weights.bias.shape != (gates,):
        raise ValueError(
            "LSTM weights must be w_ih [D, 4H], w_hh [H, 4H] and bias [4H], not "
            f"{weights.w_ih.shape}, {weights.w_hh.shape} and {weights.bias.shape}"
        )
    if not hasattr(x, "ndim"):
        raise ValueError(f"LSTM input must be an array, not {type(x).__name__}")
    one_hot = jnp.issubdtype(x.dtype, jnp.integer)
    if x.ndim != (2 if one_hot else 3) or not (one_hot or x.shape[-1] == inputs):
        raise ValueError(f"LSTM input must be [B, T, {inputs}] float or [B, T] integer, not {x.shape} {x.dtype}")
    state = (x.shape[0], hidden)
    if carry.c.shape != state or carry.h.shape != state:
        raise ValueError(f"LSTM carry must be c and h of {state}, not {carry.c.shape} and {carry.h.shape}")
