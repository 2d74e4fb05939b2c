"""Generation on CPUs: a stack of layers, its head and the sampling of characters, many steps in one custom call.

The weights are packed once per model, in the order in which a step reads them, as float32, bfloat16 or int8. Int8
weights have a scale per column; they are multiplied by 8-bit hidden states and summed exactly. The call computes the
same function as `single_step` and `generation.sampling.sample`; the order in which the sums of a sequence are
accumulated does not depend on the batch size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, LSTMCarry, LSTMWeights
from charjax.host.cpu import available_cores
from charjax.ops.lstm.native.libraries import Library, libraries

# Instructions instead of an id: sample an id; skip this step; and, as RESET - id, read id from a zero state.
SAMPLE, SKIP, RESET = -1, -2, -3


class PackedWeights(NamedTuple):
    """A model's weights in the kernel's layout.

    Attributes:
        kernels: one-dimensional, in the operand dtype: each layer, then the head, as [panel][k][column of the panel].
        start: float32, the initial values of the sums: the rows of layer 0 plus its bias, a row of NaN, then the biases
            of the layers above and of the head.
        scale: float32, the scale of each column for int8, otherwise empty.
    """

    kernels: Array
    start: Array
    scale: Array


def library_for_generation() -> Library | None:
    """Returns the best compiled form of the kernel on this machine, or None."""
    return next(iter(libraries()), None)


def pack(
    layers: Sequence[LSTMWeights], head_kernel: Array, head_bias: Array, dtype: str, library: Library
) -> PackedWeights:
    """Packs the parameters of L layers and a head ([H, V] and [V], float32) in "float32", "bfloat16" or "int8"."""
    panel, at_once = library.panel, {"float32": 1, "bfloat16": 2, "int8": library.bytes_at_once}[dtype]
    padded = -(-layers[0].w_hh.shape[0] // panel) * panel
    by_gate = [_panels_of_gates(_rows(layer, n, padded), panel) for n, layer in enumerate(layers)]
    products = [*by_gate, _panels(_pad(head_kernel, 0, padded), 4 * panel)]
    if dtype == "int8":
        quantized = [_quantize(product) for product in products]
        kernels = [kernel for kernel, _ in quantized]
        scales = [scale for _, scale in quantized]
        # The kernel multiplies unsigned states, h + 128; the initial value of each sum compensates for the 128.
        offsets = [
            128 * scale * jnp.sum(kernel.astype(jnp.float32), axis=1)
            for kernel, scale in zip(kernels, scales, strict=True)
        ]
    else:
        kernels, scales = [product.astype(dtype) for product in products], []
        offsets = [jnp.zeros((product.shape[0], product.shape[2]), jnp.float32) for product in products]
    # The rows of layer 0 are rounded as if they were matmul operands.
    first = layers[0].w_ih.astype("float32" if dtype == "int8" else dtype).astype(jnp.float32) + layers[0].bias[None]
    table = jnp.concatenate([first, jnp.full((1, first.shape[1]), jnp.nan)])
    biases = [_panels_of_gates(layer.bias[None], panel)[:, 0] for layer in layers[1:]]
    starts = [
        jax.vmap(lambda row: _panels_of_gates(row[None], panel)[:, 0])(table) - offsets[0][None],
        *(bias - offset for bias, offset in zip(biases, offsets[1:-1], strict=True)),
        _panels(head_bias[None], 4 * panel)[:, 0] - offsets[-1],
    ]
    return PackedWeights(
        jnp.concatenate([_in_groups(kernel, at_once).reshape(-1) for kernel in kernels]),
        jnp.concatenate([start.reshape(-1) for start in starts]),
        jnp.concatenate([scale.reshape(-1) for scale in scales]) if scales else jnp.zeros(0, jnp.float32),
    )


def run_steps(
    library: Library,
    dtype: str,
    weights: PackedWeights,
    carry: Sequence[LSTMCarry],
    given: Array,
    keys: Array,
    position: Array,
    settings: Sequence[Array],
    *,
    vocab_size: int,
    with_logits: bool = False,
) -> tuple[Array, tuple[LSTMCarry, ...], Array]:
    """Runs T steps for a batch of B sequences.

    Args:
        library: the compiled form that the weights were packed for.
        dtype: the weight format.
        weights: from `pack`.
        carry: the recurrent state, [B, H] float32 per layer.
        given: [B, T] int32, the ids to read, or instructions: SAMPLE samples an id, SKIP skips the step, and RESET - id
            reads id from a zero state.
        keys: [B] Threefry keys; step t uses the noise of `generation.sampling.gumbel_noise` at position + t.
        position: [] int32.
        settings: the fields of `generation.sampling.Settings`, [B] each.
        vocab_size: V.
        with_logits: whether to return logits.

    Returns:
        ids [B, T] int32, given or sampled; the carry; and the logits for each character before it is read,
        [B, T, V] float32, or [0] without `with_logits`.
    """
    results = [
        jax.ShapeDtypeStruct(given.shape, jnp.int32),
        *(jax.ShapeDtypeStruct((len(carry), *carry[0].h.shape), jnp.float32) for _ in range(2)),
        jax.ShapeDtypeStruct((*given.shape, vocab_size) if with_logits else (0,), jnp.float32),
    ]
    call = jax.ffi.ffi_call(library.target("generate", dtype), results, vmap_method="sequential")
    c, h = (jnp.stack(part) for part in zip(*carry, strict=True))
    ids, c, h, logits = call(
        *weights,
        c,
        h,
        given,
        jax.random.key_data(keys),
        jnp.asarray(position, jnp.uint32),
        *settings,
        # Use all cores, even if JAX splits them into multiple devices, because the other devices are idle meanwhile.
        threads=np.int64(available_cores()),
        vocab_size=np.int64(vocab_size),
    )
    return ids, tuple(LSTMCarry(c[n], h[n]) for n in range(len(carry))), logits


def _rows(layer: LSTMWeights, number: int, padded: int) -> Array:
    """Returns the matmul kernel of a layer, [K, 4H]: rows for the input (except in layer 0), then rows for h."""
    parts = [layer.w_hh] if number == 0 else [layer.w_ih, layer.w_hh]
    return jnp.concatenate([_pad(part, 0, padded) for part in parts])


def _pad(x: Array, axis: int, size: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _panels_of_gates(x: Array, panel: int) -> Array:
    """Rearranges [K, 4H] -> [P, K, 4 * panel], the four gates of a panel's units side by side."""
    units = x.reshape(x.shape[0], 4, -1)
    padded = -(-units.shape[2] // panel) * panel
    split = _pad(units, 2, padded).reshape(x.shape[0], 4, -1, panel)
    return split.transpose(2, 0, 1, 3).reshape(-1, x.shape[0], 4 * panel)


def _panels(x: Array, width: int) -> Array:
    """Cuts [K, N] into panels -> [P, K, width]."""
    padded = -(-x.shape[1] // width) * width
    return _pad(x, 1, padded).reshape(x.shape[0], -1, width).transpose(1, 0, 2)


def _in_groups(x: Array, group: int) -> Array:
    """Groups adjacent terms of the sums: [P, K, N] -> [P, K / group, N, group]."""
    panels, rows, width = x.shape
    return x.reshape(panels, rows // group, group, width).swapaxes(2, 3)


def _quantize(x: Array) -> tuple[Array, Array]:
    """Quantizes [P, K, N] -> int8 in [-127, 127], and the scale [P, N] for products with states in [-127, 127]."""
    largest = jnp.max(jnp.abs(x), axis=1)
    scale = jnp.where(largest > 0, largest, 1.0) / 127
    return jnp.round(x / scale[:, None]).astype(jnp.int8), scale / 127
