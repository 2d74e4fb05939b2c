"""How one layer is shared out over warpgroups and thread blocks, and the arrays the kernels see.

Inside the kernels a column is one sequence of the batch and a row one hidden unit, so that all that a product leaves in
registers belongs to one unit per row: products are W^T h^T and W dz^T. That lets a thread block take as few sequences
as it likes (the rows of a wgmma come in 64s, its columns in 8s), and the four gates of a unit land in one thread.
"""

from typing import NamedTuple

import jax.numpy as jnp

from charjax.types import Array

UNITS = 64  # of a warpgroup: the rows of a wgmma
COLUMNS = 32  # sequences of a thread block


class Geometry(NamedTuple):
    """One layer's share-out.

    Attributes:
        hidden: units, a sum of zeros where the layer has fewer.
        warpgroups: to a thread block, UNITS units each.
        blocks: thread blocks of a cluster, which share the units out.
    """

    hidden: int
    warpgroups: int
    blocks: int

    @property
    def block_units(self) -> int:
        """Units of one thread block."""
        return self.warpgroups * UNITS


# A block holds its recurrent weights in 128 KB of shared memory: all at 128 units, those of 64 units at 256.
GEOMETRIES = (Geometry(hidden=128, warpgroups=2, blocks=1),)


def geometry_for(hidden: int) -> Geometry:
    """The smallest that holds so many units.

    Raises:
        NotImplementedError: there is none.
    """
    for geometry in GEOMETRIES:
        if hidden <= geometry.hidden:
            return geometry
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


def weights_to_kernel(w_hh: Array, geometry: Geometry) -> Array:
    """[H, 4H] -> [4, hidden before, hidden after], zeros for units that the layer does not have."""
    hidden = w_hh.shape[0]
    gates = w_hh.reshape(hidden, 4, hidden).transpose(1, 0, 2)
    missing = geometry.hidden - hidden
    return jnp.pad(gates, ((0, 0), (0, missing), (0, missing)))


def _pad(array: Array, geometry: Geometry) -> Array:
    """Pads [..., H, B] to whole thread blocks."""
    units, columns = array.shape[-2:]
    missing = ((0, geometry.hidden - units), (0, -columns % COLUMNS))
    return jnp.pad(array, ((0, 0),) * (array.ndim - 2) + missing)
