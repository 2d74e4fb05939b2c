"""The exchange of data that all warpgroups need for the next matmul.

Within a single thread block, warpgroups write to its shared memory. In a cluster, they write to the shared memory of
each thread block that needs the data (distributed shared memory, via `st.async`, which counts its bytes on a barrier of
the receiver). The interpreter supports only one thread block, so the cluster path is compiled but never interpreted.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.array_types import Array
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import Geometry
from charjax.ops.lstm.experimental.mosaic_gpu.launch import Places, sum_ref


def free_barrier(geometry: Geometry) -> Any:
    """Returns a barrier that all warpgroups of a cluster arrive at."""
    if geometry.cluster == 1:
        return plgpu.Barrier(num_arrivals=geometry.threads)
    return plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=geometry.threads)


def release(at: Places, free: Any) -> None:
    """Signals to all warpgroups of the cluster that this one has read the data that they are about to overwrite."""
    if at.geometry.cluster > 1:
        # A few threads arrive on behalf of all and must not get ahead of the matmuls of the others.
        plgpu.commit_smem()
    plgpu.barrier_arrive(free)


def ready_barrier(geometry: Geometry, turns: int) -> Any:
    """Returns the barriers for `publish` and `collect`, where each lead alternates between `turns` places."""
    return plgpu.Barrier(num_arrivals=geometry.sources, num_barriers=turns * geometry.slots)


def publish(
    at: Places, value: Array, place: Callable[[Array | int], Any], ready: Any, turn: Array | int, blocks: Array
) -> None:
    """Writes the rows of a lead to wherever they are summed over, and commits shared memory.

    Args:
        at: the lead.
        value: bfloat16 [rows, columns].
        place: maps a slot to its shared memory.
        ready: from `ready_barrier`.
        turn: which of its places to use.
        blocks: the geometry's `blocks`, as a value unknown to the compiler; see `launch`.
    """
    geometry = at.geometry
    if geometry.cluster == 1:
        place(at.home)[...] = value
        announce(at, ready, turn)
        return

    def store(number: Array, nothing: None) -> None:
        # Each sender starts with a different receiver.
        block = (at.block + number) % geometry.blocks
        target = block * geometry.halves + at.home
        plgpu.async_store_smem(value, place(0), ready.at[turn], cluster_idx=target, cluster_dim="block")
        return nothing

    jax.lax.fori_loop(0, blocks, store, None)
    plgpu.commit_smem()


def announce(at: Places, ready: Any, turn: Array | int) -> None:
    """Completes `publish` in a single thread block, after the value has been written."""
    plgpu.commit_smem()
    plgpu.barrier_arrive(ready.at[turn * at.geometry.slots + at.home])


def collect(at: Places, ready: Any, turn: Array | int) -> None:
    """Waits for all the data that a warpgroup's half sums over, and makes it visible to the tensor cores."""
    plgpu.barrier_wait(ready.at[turn * at.geometry.slots + at.slot])
    if at.geometry.cluster > 1:
        plgpu.commit_smem()


def add_halves(at: Places, sums: list[Array], scratch: Any, turn: Array | int) -> list[Array]:
    """Adds the other half's sums to those of a lead; the result of a helper is unused.

    Args:
        at: the warpgroup.
        sums: float32 [UNITS, columns] each.
        scratch: the kernel's scratch, with the attributes from `halves_scratch`.
        turn: alternately 0 and 1, because a helper may be one step ahead of its lead, but not two.
    """
    if at.geometry.halves == 1:
        return sums
    memory, barrier = scratch.halves, scratch.halves_ready.at[turn * at.geometry.leads + at.group]

    @pl.when(at.half == 1)
    def send() -> None:
        for number, part in enumerate(sums):
            target = memory.at[turn, at.group, number]
            if at.geometry.flat:
                target[...] = part
            else:
                lead = jnp.int32(at.block * at.geometry.halves)
                plgpu.async_store_smem(part, target, barrier, cluster_idx=lead, cluster_dim="block")
        if at.geometry.flat:
            plgpu.barrier_arrive(barrier)

    @at.lead
    def receive() -> None:
        plgpu.barrier_wait(barrier)

    return [part + memory[turn, at.group, number] for number, part in enumerate(sums)]


def halves_scratch(geometry: Geometry, sums: int) -> dict[str, Any]:
    """Returns scratch for `add_halves`: [2, leads, sums, UNITS, columns] float32, and a barrier per turn and lead."""
    if geometry.halves == 1:
        return {}
    arrivals = 1 if geometry.flat else sums
    shape = (2, geometry.leads, sums, *sum_ref(geometry).shape)
    return {
        "halves": plgpu.SMEM(shape, jnp.float32),
        "halves_ready": plgpu.Barrier(num_arrivals=arrivals, num_barriers=2 * geometry.leads),
    }


def store_carry(at: Places, carry: Any, values: tuple[Array, Array], results: tuple[Any, Any]) -> None:
    """Writes two [UNITS, columns] float32 arrays to the results via the shared memory of `carry`."""
    for number, value in enumerate(values):
        carry[at.group, number] = value
    plgpu.commit_smem()
    for number, result in enumerate(results):
        plgpu.copy_smem_to_gmem(carry.at[at.group, number], result.at[at.units, at.columns])
    plgpu.wait_smem_to_gmem(0)
