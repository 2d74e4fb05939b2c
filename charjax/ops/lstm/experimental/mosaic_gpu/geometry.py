"""How one layer is shared out over warpgroups and thread blocks, and the arrays the kernels see.

Inside the kernels a column is one sequence of the batch and a row one hidden unit, so that all that a product leaves in
registers belongs to one unit per row: products are W^T h^T and W dz^T. That lets a thread block take as few sequences
as it likes (the rows of a wgmma come in 64s, its columns in 8s), and the four gates of a unit land in one thread.
"""

from typing import NamedTuple

import jax.numpy as jnp

from charjax.array_types import Array

UNITS = 64  # of a warpgroup: the rows of a wgmma


class Geometry(NamedTuple):
    """One layer's share-out.

    A cluster of blocks * halves thread blocks runs a group of sequences from the first step to the last. Where there
    are two halves, two thread blocks share the sums over the units of the step before; the first of them, the lead,
    adds up and does all that follows.

    Attributes:
        hidden: units, a sum of zeros where the layer has fewer.
        columns: sequences of a cluster.
        warpgroups: to a thread block, UNITS units each.
        blocks: thread blocks that share the units out.
        halves: thread blocks that share the sums out.
        flat: the cluster's warpgroups are to run as those of one thread block, as they do when interpreted.
    """

    hidden: int
    columns: int
    warpgroups: int
    blocks: int
    halves: int
    flat: bool = False

    @property
    def block_units(self) -> int:
        """Units of one thread block."""
        return self.hidden if self.flat else self.warpgroups * UNITS

    @property
    def threads(self) -> int:
        """Warpgroups of one thread block."""
        return self.warpgroups * (self.blocks * self.halves if self.flat else 1)

    @property
    def leads(self) -> int:
        """Warpgroups of one thread block, without those that only help."""
        return self.block_units // UNITS

    @property
    def cluster(self) -> int:
        """Thread blocks that run together."""
        return 1 if self.flat else self.blocks * self.halves

    @property
    def spread(self) -> bool:
        """Whether there are several thread blocks, were it not for being flat."""
        return self.blocks * self.halves > 1

    @property
    def slots(self) -> int:
        """Halves whose sums one thread block makes."""
        return self.halves if self.flat else 1

    @property
    def summed(self) -> int:
        """Units that one half sums over."""
        return self.hidden // self.halves

    @property
    def sources(self) -> int:
        """Warpgroups that what one half sums over comes from."""
        return self.summed // UNITS


# A thread block holds its recurrent weights in 128 KB of shared memory: all of them at 128 units, those of 64 units at
# 256, and half of those of 64 units at 512. A step takes as long as reading them there, and 16 columns do not make that
# longer, while the gates take time for every column.
GEOMETRIES = (
    Geometry(hidden=128, columns=16, warpgroups=2, blocks=1, halves=1),
    Geometry(hidden=256, columns=16, warpgroups=1, blocks=4, halves=1),
    Geometry(hidden=512, columns=16, warpgroups=1, blocks=8, halves=2),
)


def geometry_for(hidden: int, *, flat: bool) -> Geometry:
    """The smallest that holds so many units.

    Raises:
        NotImplementedError: there is none.
    """
    for geometry in GEOMETRIES:
        if hidden <= geometry.hidden:
            return geometry._replace(flat=flat)
    raise NotImplementedError(
        f"LSTM implementation 'mosaic_gpu' serves up to {GEOMETRIES[-1].hidden} hidden units, not {hidden}"
    )


def steps_to_kernel(steps: Array, parts: int, geometry: Geometry) -> Array:
    """[T, B, parts * H] -> [T * parts, hidden, columns], zeros where there are no units and no sequences."""
    time, batch, width = steps.shape
    split = steps.reshape(time, batch, parts, width // parts).transpose(0, 2, 3, 1)
    return _pad(split.reshape(time * parts, width // parts, batch), geometry)


def steps_from_kernel(steps: Array, parts: int, batch: int, hidden: int) -> Array:
    """[T * parts, hidden, columns] -> [T, B, parts * H]."""
    cut = steps[:, :hidden, :batch].reshape(-1, parts, hidden, batch)
    return cut.transpose(0, 3, 1, 2).reshape(-1, batch, parts * hidden)


def state_to_kernel(state: Array, geometry: Geometry) -> Array:
    """[B, H] -> [hidden, columns]."""
    return _pad(state.T, geometry)


def state_from_kernel(state: Array, batch: int, hidden: int) -> Array:
    """[hidden, columns] -> [B, H]."""
    return state[:hidden, :batch].T


def weights_forward(w_hh: Array, geometry: Geometry) -> Array:
    """[H, 4H] -> [4, hidden after, hidden before]."""
    return _padded_weights(w_hh, geometry).transpose(1, 2, 0)


def weights_backward(w_hh: Array, geometry: Geometry) -> Array:
    """[H, 4H] -> [hidden before, 4 * hidden after], with the four gates of UNITS units side by side."""
    grouped = _padded_weights(w_hh, geometry).reshape(geometry.hidden, 4, -1, UNITS)
    return grouped.transpose(0, 2, 1, 3).reshape(geometry.hidden, 4 * geometry.hidden)


def _padded_weights(w_hh: Array, geometry: Geometry) -> Array:
    """[H, 4H] -> [hidden before, 4, hidden after], zeros for units that the layer does not have."""
    hidden = w_hh.shape[0]
    missing = geometry.hidden - hidden
    return jnp.pad(w_hh.reshape(hidden, 4, hidden), ((0, missing), (0, 0), (0, missing)))


def _pad(array: Array, geometry: Geometry) -> Array:
    """Pads [..., H, B] to whole thread blocks."""
    units, columns = array.shape[-2:]
    missing = ((0, geometry.hidden - units), (0, -columns % geometry.columns))
    return jnp.pad(array, ((0, 0),) * (array.ndim - 2) + missing)
