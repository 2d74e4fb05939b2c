"""Devices: a mesh with one axis, "data", over which streams of text are split and everything else is copied."""

import collections
import logging
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from charjax.errors import UserError
from charjax.host.cpu import available_cores

Tree = TypeVar("Tree")

DATA_AXIS = "data"
REPLICATED = PartitionSpec()
OVER_STREAMS = PartitionSpec(DATA_AXIS)
LEAST_STREAMS_PER_CORE = 8

_log = logging.getLogger("charjax")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the given devices (by default all of them) along the axis "data".

    The axis is Auto: with the Explicit axes of `jax.make_mesh`, indexing inside flax.linen raises.
    """
    chosen = jax.devices() if devices is None else devices
    return Mesh(np.array(chosen), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def use_all_cores() -> None:
    """Makes JAX treat each processor core as a device, which trains faster than one device with threads.

    It must come before JAX is used for the first time; later it has no effect, and says so in the log. Where the user
    has chosen a number of CPU devices (`jax_num_cpu_devices` or XLA_FLAGS), that stays.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", available_cores())
    except RuntimeError:
        if jax.default_backend() == "cpu" and available_cores() > 1:
            _log.info("JAX was in use before: training on %d CPU device(s)", jax.device_count())


def make_training_mesh(batch_size: int, microbatches: int = 1) -> Mesh:
    """The mesh to train on where none is given: all devices, or as many processor cores as share the batch out evenly.

    A core takes at least 8 streams at once: with fewer, its matrix products read more weights than they use. Of several
    processes each takes part, with as many cores as the others.
    """
    devices = jax.devices()
    if jax.default_backend() != "cpu":
        return make_mesh(devices)
    processes = jax.process_count()
    streams = batch_size // microbatches // processes
    least = min(collections.Counter(device.process_index for device in devices).values())
    most = max(1, min(least, streams // LEAST_STREAMS_PER_CORE))
    cores = max(count for count in range(1, most + 1) if streams % count == 0)
    return make_mesh([device for device in devices if _place(device, devices) < cores])


def _place(device: jax.Device, devices: Sequence[jax.Device]) -> int:
    """Which of its process's devices it is, from 0."""
    return [other for other in devices if other.process_index == device.process_index].index(device)


def check_divides(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Checks that every device gets the same number of streams, and every part of a batch, too.

    Raises:
        UserError: batch_size is no multiple of the number of devices times that of microbatches.
    """
    parts = mesh.size * microbatches
    if batch_size % parts:
        over = [f"{mesh.size} device{'s' if mesh.size > 1 else ''}"] if mesh.size > 1 or microbatches == 1 else []
        over += [f"{microbatches} microbatches"] if microbatches > 1 else []
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(
            f"batch_size {batch_size} cannot be split evenly over {' x '.join(over)}; try batch_size {nearest}"
        )


def put_streams(tree: Tree, mesh: Mesh) -> Tree:
    """Puts arrays [B, ...] on the mesh's devices, split along B, and scalars on each of them."""
    split, copied = NamedSharding(mesh, OVER_STREAMS), NamedSharding(mesh, REPLICATED)
    return jax.device_put(tree, jax.tree.map(lambda leaf: split if np.ndim(leaf) else copied, tree))


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy of every array on each of the mesh's devices."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def on_one_device(tree: Tree) -> Tree:
    """The same arrays, those of which each device has a copy, as training leaves them, on the first alone.

    What is not shared out over devices each of them would compute, at once and on the same cores or not.
    """

    def one(leaf: Any) -> Any:
        copied = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_fully_replicated
        return leaf.addressable_data(0) if copied and len(leaf.sharding.device_set) > 1 else leaf

    return jax.tree.map(one, tree)
