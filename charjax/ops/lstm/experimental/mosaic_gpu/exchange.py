"""How warpgroups hand on what all of them need for the next product.

In one thread block they write to its shared memory. In a cluster they write to that of each thread block that needs it
(distributed shared memory: `st.async`, which counts its bytes on a barrier of the receiver). Interpretation knows one
thread block only, so that the latter is compiled but not interpreted.
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
    """A barrier that all warpgroups of a cluster arrive on."""
    if geometry.cluster == 1:
        return plgpu.Barrier(num_arrivals=geometry.threads)
    return plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=geometry.threads)


def release(at: Places, free: Any) -> None:
    """Tells all warpgroups of the cluster that this one has read what they are about to overwrite."""
    if at.geometry.cluster > 1:
        # There a few threads arrive for all, and must not be ahead of the others' products.
        plgpu.commit_smem()
    plgpu.barrier_arrive(free)


def ready_barrier(geometry: Geometry, turns: int) -> Any:
    """For `publish` and `collect`, with what every lead hands on in `turns` places by turns."""
    return plgpu.Barrier(num_arrivals=geometry.sources, num_barriers=turns * geometry.slots)


def publish(
    at: Places, value: Array, place: Callable[[Array | int], Any], ready: Any, turn: Array | int, blocks: Array
) -> None:
    """Writes a lead's rows wherever they are summed over, and commits shared memory.

    Args:
        at: the lead.
        value: bfloat16 [rows, columns].
        place: from a slot to the shared memory that it goes to.
        ready: see `ready_barrier`.
        turn: which of its turns it is.
        blocks: the geometry's, as a number that the compiler does not know; see `launch`.
    """
    geometry = at.geometry
    if geometry.cluster == 1:
        place(at.home)[...] = value
        announce(at, ready, turn)
        return

    def store(number: Array, nothing: None) -> None:
        # Everyone begins with another receiver.
        block = (at.block + number) % geometry.blocks
        target = block * geometry.halves + at.home
        plgpu.async_store_smem(value, place(0), ready.at[turn], cluster_idx=target, cluster_dim="block")
        return nothing

    jax.lax.fori_loop(0, blocks, store, None)
    plgpu.commit_smem()


def announce(at: Places, ready: Any, turn: Array | int) -> None:
    """As `publish` in one thread block, for what has been written."""
    plgpu.commit_smem()
    plgpu.barrier_arrive(ready.at[turn * at.geometry.slots + at.home])


def collect(at: Places, ready: Any, turn: Array | int) -> None:
    """Waits for all that a warpgroup's half sums over, and shows it to the tensor cores."""
    plgpu.barrier_wait(ready.at[turn * at.geometry.slots + at.slot])
    if at.geometry.cluster > 1:
        plgpu.commit_smem()


def add_halves(at: Places, sums: list[Array], memory: Any, ready: Any, turn: Array | int) -> list[Array]:
    """Adds the other half's sums to a lead's; what a helper gets is of no use.

    Args:
        at: the warpgroup.
        sums: float32 [UNITS, columns] each.
        memory: float32 [2, leads, sums, UNITS, columns] in shared memory.
        ready: a barrier for each turn and each lead of the thread block.
        turn: 0 and 1 in alternation: a helper may be a step ahead of its lead, but not two.
    """
    if at.geometry.halves == 1:
        return sums
    barrier = ready.at[turn * at.geometry.leads + at.group]

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
    """What `add_halves` needs, under the names that the kernels give it."""
    if geometry.halves == 1:
        return {}
    arrivals = 1 if geometry.flat else sums
    shape = (2, geometry.leads, sums, *sum_ref(geometry).shape)
    return {
        "halves": plgpu.SMEM(shape, jnp.float32),
        "halves_ready": plgpu.Barrier(num_arrivals=arrivals, num_barriers=2 * geometry.leads),
    }
