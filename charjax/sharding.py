"""Devices: a mesh with one axis, "data", over which streams of text are split and everything else is copied."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from charjax.errors import UserError

Tree = TypeVar("Tree")

DATA_AXIS = "data"
REPLICATED = PartitionSpec()
OVER_STREAMS = PartitionSpec(DATA_AXIS)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the given devices (by default all of them) along the axis "data".

    The axis is Auto: with the Explicit axes of `jax.make_mesh`, indexing inside flax.linen raises.
    """
    chosen = jax.devices() if devices is None else devices
    return Mesh(np.array(chosen), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Checks that every device gets the same number of streams.

    Raises:
        UserError: batch_size is no multiple of the number of devices.
    """
    if batch_size % mesh.size:
        nearest = max(mesh.size, round(batch_size / mesh.size) * mesh.size)
        raise UserError(
            f"batch_size {batch_size} cannot be split evenly over {mesh.size} devices; try batch_size {nearest}"
        )


def put_streams(tree: Tree, mesh: Mesh) -> Tree:
    """Puts arrays [B, ...] on the mesh's devices, split along B."""
    return jax.device_put(tree, NamedSharding(mesh, OVER_STREAMS))


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy of every array on each of the mesh's devices."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))
