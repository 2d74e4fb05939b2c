"""Places arrays on devices using a mesh whose only axis, "data", splits batches; everything else is replicated."""

import collections
import logging
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from charjax.devices import all_devices
from charjax.errors import UserError, check_type, checked_whole, in_short
from charjax.host.cpu import available_cores

Tree = TypeVar("Tree")

DATA_AXIS = "data"
REPLICATED = PartitionSpec()
OVER_BATCH = PartitionSpec(DATA_AXIS)
MIN_SEQUENCES_PER_CORE = 8

_log = logging.getLogger("charjax")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates a mesh of the given devices (all by default) along the axis "data".

    The axis is Auto, because indexing inside flax.linen raises an error with the Explicit axes of `jax.make_mesh`.

    Raises:
        UserError: devices is empty or is not a list of distinct devices.

    Examples:
        >>> import jax
        >>> from charjax import make_mesh
        >>> make_mesh(jax.devices()[:1]).axis_names
        ('data',)
    """
    chosen = np.array(all_devices() if devices is None else devices)
    are_devices = chosen.ndim == 1 and all(hasattr(device, "platform") for device in chosen)
    if not are_devices or not 0 < len(set(chosen)) == len(chosen):
        raise UserError(f"devices must be distinct devices, e.g. jax.devices()[:2], not {in_short(devices)}")
    return Mesh(chosen, (DATA_AXIS,), axis_types=(AxisType.Auto,))


def checked_mesh(mesh: Mesh | None) -> Mesh:
    """Returns the mesh passed by a caller, or a mesh of all devices for None.

    Raises:
        UserError: the argument is not a mesh, or its axes are not those of `make_mesh`.
    """
    if mesh is None:
        return make_mesh()
    advice = "make one with charjax.make_mesh"
    check_type("mesh", mesh, Mesh, advice)
    if mesh.axis_names != (DATA_AXIS,):
        raise UserError(
            f'mesh must have one axis, "{DATA_AXIS}", not {", ".join(map(repr, mesh.axis_names))}; {advice}'
        )
    return mesh


def use_all_cores() -> None:
    """Makes JAX treat each CPU core as a device, which trains faster than a single multi-threaded device.

    Must be called before JAX is first used; after that, it only logs that it has no effect. If the user has already set
    the number of CPU devices (`jax_num_cpu_devices` or XLA_FLAGS), it is kept.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", available_cores())
    except RuntimeError:
        if all_devices()[0].platform == "cpu" and available_cores() > 1:
            _log.info("JAX was already in use; training on %d CPU device(s)", jax.device_count())


def make_training_mesh(batch_size: int, microbatches: int = 1) -> Mesh:
    """Creates the default mesh for training: all devices, or as many CPU cores as divide the batch evenly.

    Each core gets at least 8 sequences; with fewer, its matmuls would spend their time reading weights. With multiple
    processes, each contributes the same number of cores.
    """
    devices = all_devices()
    if jax.default_backend() != "cpu":
        return make_mesh(devices)
    processes = jax.process_count()
    sequences = batch_size // microbatches // processes
    local = collections.defaultdict(list)
    for device in devices:
        local[device.process_index].append(device)
    most = max(1, min(*map(len, local.values()), sequences // MIN_SEQUENCES_PER_CORE))
    cores = max(count for count in range(1, most + 1) if sequences % count == 0)
    return make_mesh([device for of_process in local.values() for device in of_process[:cores]])


def check_divides(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Checks that a batch can be split evenly over the devices and microbatches.

    Raises:
        UserError: batch_size is not a multiple of the number of devices times `microbatches`.
    """
    batch_size, parts = checked_whole("batch_size", batch_size), mesh.size * microbatches
    if batch_size % parts:
        over = [f"{mesh.size} device{'s' if mesh.size > 1 else ''}"] if mesh.size > 1 or microbatches == 1 else []
        over += [f"{microbatches} microbatches"] if microbatches > 1 else []
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(
            f"batch_size {batch_size} cannot be split evenly over {' x '.join(over)}; try batch_size {nearest}"
        )


def put_streams(tree: Tree, mesh: Mesh) -> Tree:
    """Puts arrays [B, ...] on the devices of the mesh, split along B, and scalars on all of them.

    Raises:
        UserError: the mesh was not made by `make_mesh`.

    Examples:
        >>> import jax, numpy as np
        >>> from charjax import make_mesh, make_streams, put_streams
        >>> streams = make_streams(np.zeros(9, np.uint8), batch_size=2, seq_len=2)
        >>> streams = put_streams(streams, make_mesh(jax.devices()[:1]))
        >>> streams.ids.shape
        (2, 5)
    """
    mesh = checked_mesh(mesh)
    split, replicated = NamedSharding(mesh, OVER_BATCH), NamedSharding(mesh, REPLICATED)
    return jax.device_put(tree, jax.tree.map(lambda leaf: split if np.ndim(leaf) else replicated, tree))


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy of every array on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def on_one_device(tree: Tree) -> Tree:
    """Moves replicated arrays, e.g. parameters after training, to the first of their devices without copying them.

    Otherwise, every device would compute everything that is not split over the batch.
    """

    def one(leaf: Any) -> Any:
        replicated = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_fully_replicated
        return leaf.addressable_data(0) if replicated and len(leaf.sharding.device_set) > 1 else leaf

    return jax.tree.map(one, tree)
