"""How the kernels for TPUs cut a layer into blocks, and what they pad it with."""

from typing import NamedTuple

import jax.numpy as jnp

from charjax.array_types import Array

LANES = 128
# Rows of a batch tile: enough to hide the loading of weights into the matrix units; fewer where H is large, since the
# program grows with both.
MOST_ROWS = 128
MOST_ROWS_TIMES_UNITS = MOST_ROWS * 1024
MOST_STEPS = 8
# What the blocks that come and go may take, and what a core's memory may hold in all.
BLOCK_BYTES = 8 * 2**20
MEMORY_BYTES = 100 * 2**20


class Tiling(NamedTuple):
    """How a layer is cut: the batch into `tiles` of `rows`, time into `blocks` of `steps`.

    Attributes:
        tiles, rows: tiles x rows >= B, padded.
        hidden: H, padded to a multiple of LANES.
        blocks, steps: blocks x steps >= T; the last block ends where time does.
        memory: bytes of the core's memory to ask for.
    """

    tiles: int
    rows: int
    hidden: int
    blocks: int
    steps: int
    memory: int


def tiling(time: int, batch: int, hidden: int, dtype: jnp.dtype, unit_bytes: int) -> Tiling:
    """Cuts a layer whose blocks take so many bytes per step, row and unit; sizes are at least 1."""
    padded = _up(hidden, LANES)
    sublanes = 8 * 4 // dtype.itemsize
    tiles = _blocks(batch, max(sublanes, min(MOST_ROWS, MOST_ROWS_TIMES_UNITS // padded)))
    rows = _up(_blocks(batch, tiles), sublanes)
    # The pipeline holds two of each block: one at work, one on its way.
    step_bytes = 2 * rows * padded * unit_bytes
    blocks = _blocks(time, max(1, min(MOST_STEPS, BLOCK_BYTES // step_bytes)))
    steps = _blocks(time, blocks)
    # The weights, the blocks, the carry before and after (two of each as well), and room for what does not fit in
    # registers.
    memory = 4 * padded**2 * dtype.itemsize + steps * step_bytes + 16 * rows * padded * 4 + 2**22
    if memory > MEMORY_BYTES:
        raise NotImplementedError(
            f"LSTM implementation 'mosaic_tpu' keeps w_hh in a core's memory: {hidden} units in {dtype.name} do not fit"
        )
    return Tiling(tiles, rows, padded, blocks, steps, memory)


def pad(array: Array, cut: Tiling) -> Array:
    """[..., B, H] -> padded with zeros, which stay zero: such a unit's c and h are, and so are their cotangents."""
    missing = (cut.tiles * cut.rows - array.shape[-2], cut.hidden - array.shape[-1])
    return jnp.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, n) for n in missing])


def pad_gates(array: Array, cut: Tiling) -> Array:
    """[T, B, 4H] -> each gate's units padded, and the rows."""
    time, batch, gates = array.shape
    apart = array.reshape(time, batch, 4, gates // 4)
    missing = ((0, 0), (0, cut.tiles * cut.rows - batch), (0, 0), (0, cut.hidden - gates // 4))
    return jnp.pad(apart, missing).reshape(time, cut.tiles * cut.rows, 4 * cut.hidden)


def pad_weights(w_hh: Array, cut: Tiling) -> Array:
    """[H, 4H] -> padded."""
    hidden = w_hh.shape[0]
    missing = cut.hidden - hidden
    apart = w_hh.reshape(hidden, 4, hidden)
    return jnp.pad(apart, ((0, missing), (0, 0), (0, missing))).reshape(cut.hidden, 4 * cut.hidden)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _up(size: int, multiple: int) -> int:
    return _blocks(size, multiple) * multiple
