"""The division of a layer among warpgroups and thread blocks, and the layouts of the kernels' arrays.

Inside the kernels, each column is a sequence of the batch and each row a hidden unit; the matmuls are W^T h^T and
W dz^T, so each row of a result in registers belongs to one unit. A thread block can then handle just a few sequences
(wgmma takes rows in multiples of 64 and columns in multiples of 8), and the four gates of a unit end up in one thread.
"""

from typing import NamedTuple

import jax.numpy as jnp

from charjax.array_types import Array

UNITS = 64  # per warpgroup: the rows of a wgmma


class Geometry(NamedTuple):
    """The division of one layer.

    A cluster of blocks * halves thread blocks runs a group of sequences from the first step to the last. With two
    halves, the sums over the previous step's units are divided between two thread blocks; the first of them, the lead,
    adds the two sums and does everything else.

    Attributes:
        hidden: units, padded with zeros if the layer has fewer.
        columns: sequences per cluster.
        warpgroups: warpgroups per thread block, with UNITS units each.
        blocks: thread blocks that the units are divided among.
        halves: thread blocks that each sum is divided among.
        flat: whether to run the warpgroups of the cluster as those of a single thread block, as the interpreter
            requires.
    """

    hidden: int
    columns: int
    warpgroups: int
    blocks: int
    halves: int
    flat: bool = False

    @property
    def block_units(self) -> int:
        """Units per thread block."""
        return self.hidden if self.flat else self.warpgroups * UNITS

    @property
    def threads(self) -> int:
        """Warpgroups per thread block."""
        return self.warpgroups * (self.blocks * self.halves if self.flat else 1)

    @property
    def leads(self) -> int:
        """Leads per thread block: the warpgroups that are not just helpers."""
        return self.block_units // UNITS

    @property
    def cluster(self) -> int:
        """Thread blocks that run together."""
        return 1 if self.flat else self.blocks * self.halves

    @property
    def spread(self) -> bool:
        """Whether multiple thread blocks share the layer, or would without `flat`."""
        return self.blocks * self.halves > 1

    @property
    def slots(self) -> int:
        """Halves whose sums one thread block computes."""
        return self.halves if self.flat else 1

    @property
    def summed(self) -> int:
        """Units that one half sums over."""
        return self.hidden // self.halves

    @property
    def sources(self) -> int:
        """Warpgroups that produce what one half sums over."""
        return self.summed // UNITS


# A thread block keeps its recurrent weights in 128 KB of shared memory: all weights of a 128-unit layer, the weights of
# 64 units of a 256-unit layer, or half the weights of 64 units of a 512-unit layer. Reading them bounds the time of a
# step; with 16 columns this takes no longer, but the gates take time for every column.
GEOMETRIES = (
    Geometry(hidden=128, columns=16, warpgroups=2, blocks=1, halves=1),
    Geometry(hidden=256, columns=16, warpgroups=1, blocks=4, halves=1),
    Geometry(hidden=512, columns=16, warpgroups=1, blocks=8, halves=2),
)


def geometry_for(hidden: int, *, flat: bool) -> Geometry:
    """Returns the smallest geometry with room for `hidden` units.

    Raises:
        NotImplementedError: there are too many units.
    """
    for geometry in GEOMETRIES:
        if hidden <= geometry.hidden:
            return geometry._replace(flat=flat)
    raise NotImplementedError(
        f"LSTM implementation 'mosaic_gpu' supports up to {GEOMETRIES[-1].hidden} hidden units, not {hidden}"
    )


def steps_to_kernel(steps: Array, parts: int, geometry: Geometry) -> Array:
    """Rearranges [T, B, parts * H] -> [T * parts, hidden, columns], padded with zeros."""
    time, batch, width = steps.shape
    split = steps.reshape(time, batch, parts, width // parts).transpose(0, 2, 3, 1)
    return _pad(split.reshape(time * parts, width // parts, batch), geometry)


def steps_from_kernel(steps: Array, parts: int, batch: int, hidden: int) -> Array:
    """Undoes `steps_to_kernel`: [T * parts, hidden, columns] -> [T, B, parts * H]."""
    cut = steps[:, :hidden, :batch].reshape(-1, parts, hidden, batch)
    return cut.transpose(0, 3, 1, 2).reshape(-1, batch, parts * hidden)


def state_to_kernel(state: Array, geometry: Geometry) -> Array:
    """Rearranges [B, H] -> [hidden, columns], padded with zeros."""
    return _pad(state.T, geometry)


def state_from_kernel(state: Array, batch: int, hidden: int) -> Array:
    """Undoes `state_to_kernel`: [hidden, columns] -> [B, H]."""
    return state[:hidden, :batch].T


def weights_forward(w_hh: Array, geometry: Geometry) -> Array:
    """Rearranges [H, 4H] -> [4, hidden after, hidden before], padded with zeros."""
    return _padded_weights(w_hh, geometry).transpose(1, 2, 0)


def weights_backward(w_hh: Array, geometry: Geometry) -> Array:
    """Rearranges [H, 4H] -> [hidden before, 4 * hidden after], with the four gates of UNITS units side by side."""
    grouped = _padded_weights(w_hh, geometry).reshape(geometry.hidden, 4, -1, UNITS)
    return grouped.transpose(0, 2, 1, 3).reshape(geometry.hidden, 4 * geometry.hidden)


def _padded_weights(w_hh: Array, geometry: Geometry) -> Array:
    """Separates the gates: [H, 4H] -> [hidden before, 4, hidden after], padded with zeros."""
    hidden = w_hh.shape[0]
    missing = geometry.hidden - hidden
    return jnp.pad(w_hh.reshape(hidden, 4, hidden), ((0, missing), (0, 0), (0, missing)))


def _pad(array: Array, geometry: Geometry) -> Array:
    """Pads [..., H, B] with zeros to whole thread blocks."""
    units, columns = array.shape[-2:]
    missing = ((0, geometry.hidden - units), (0, -columns % geometry.columns))
    return jnp.pad(array, ((0, 0),) * (array.ndim - 2) + missing)
