"""The blocks into which the TPU kernels divide a layer, and the padding they need."""

from typing import NamedTuple

import jax.numpy as jnp

from charjax.array_types import Array

LANES = 128
# Rows per batch tile: enough to hide the loading of weights into the matrix units, but fewer for a large H, since the
# program grows with both.
MOST_ROWS = 128
MOST_ROWS_TIMES_UNITS = MOST_ROWS * 1024
MOST_STEPS = 8
# The limit for blocks in flight, and for all of a core's VMEM.
BLOCK_BYTES = 8 * 2**20
MEMORY_BYTES = 100 * 2**20


class Tiling(NamedTuple):
    """The division of a layer: the batch into `tiles` of `rows`, time into `blocks` of `steps`.

    Attributes:
        tiles, rows: tiles x rows is at least B, with padding.
        hidden: H, padded to a multiple of LANES.
        blocks, steps: blocks x steps is at least T; the last block may be shorter.
        memory: bytes of VMEM to request.
    """

    tiles: int
    rows: int
    hidden: int
    blocks: int
    steps: int
    memory: int


def tiling(time: int, batch: int, hidden: int, dtype: jnp.dtype, unit_bytes: int) -> Tiling:
    """Divides a layer whose blocks occupy `unit_bytes` per step, row and unit; all sizes must be at least 1."""
    padded = _up(hidden, LANES)
    sublanes = 8 * 4 // dtype.itemsize
    tiles = _blocks(batch, max(sublanes, min(MOST_ROWS, MOST_ROWS_TIMES_UNITS // padded)))
    rows = _up(_blocks(batch, tiles), sublanes)
    # The pipeline double-buffers every block.
    step_bytes = 2 * rows * padded * unit_bytes
    blocks = _blocks(time, max(1, min(MOST_STEPS, BLOCK_BYTES // step_bytes)))
    steps = _blocks(time, blocks)
    # The weights, the blocks, the initial and final carry (also double-buffered), and room for register spills.
    memory = 4 * padded**2 * dtype.itemsize + steps * step_bytes + 16 * rows * padded * 4 + 2**22
    if memory > MEMORY_BYTES:
        raise NotImplementedError(
            f"LSTM implementation 'mosaic_tpu' keeps w_hh in VMEM, which cannot hold {hidden} units in {dtype.name}"
        )
    return Tiling(tiles, rows, padded, blocks, steps, memory)


def pad(array: Array, cut: Tiling) -> Array:
    """Pads [..., B, H] with zeros, which stay zero: c and h of padded units are zero, and so are their cotangents."""
    missing = (cut.tiles * cut.rows - array.shape[-2], cut.hidden - array.shape[-1])
    return jnp.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, n) for n in missing])


def pad_gates(array: Array, cut: Tiling) -> Array:
    """Pads the units of each gate, and the rows, of [T, B, 4H]."""
    time, batch, gates = array.shape
    apart = array.reshape(time, batch, 4, gates // 4)
    missing = ((0, 0), (0, cut.tiles * cut.rows - batch), (0, 0), (0, cut.hidden - gates // 4))
    return jnp.pad(apart, missing).reshape(time, cut.tiles * cut.rows, 4 * cut.hidden)


def pad_weights(w_hh: Array, cut: Tiling) -> Array:
    """Zero-pads the hidden units of w_hh [H, 4H]."""
    hidden = w_hh.shape[0]
    missing = cut.hidden - hidden
    apart = w_hh.reshape(hidden, 4, hidden)
    return jnp.pad(apart, ((0, missing), (0, 0), (0, missing))).reshape(cut.hidden, 4 * cut.hidden)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _up(size: int, multiple: int) -> int:
    return _blocks(size, multiple) * multiple
