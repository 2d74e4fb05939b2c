"""The backward kernel, which runs all steps from last to first in one launch, with the weights in shared memory."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.array_types import Array
from charjax.ops.lstm.experimental.mosaic_gpu.exchange import (
    add_halves,
    announce,
    collect,
    free_barrier,
    halves_scratch,
    publish,
    ready_barrier,
    release,
    store_carry,
)
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import UNITS, Geometry
from charjax.ops.lstm.experimental.mosaic_gpu.launch import Places, launch, sum_ref

FACTORS = 7  # dy and the six fields of `recompute.Factors`


def backward_kernel(
    geometry: Geometry, steps: tuple[Array, ...], w: Array, dc: Array, dh: Array, interpret: Any
) -> tuple[Array, ...]:
    """Runs all steps.

    Args:
        geometry: how the layer is divided.
        steps: dy and the factors of_c, of_i, of_f, of_g, of_o, f, each [T, hidden, columns] bfloat16.
        w: [hidden before, groups of UNITS units, 4, UNITS after] bfloat16, the last three merged into one dimension.
        dc: [hidden, columns] float32, the cotangent of c after the last step.
        dh: [hidden, columns] float32, the cotangent of h after the last step.
        interpret: Pallas's parameters for interpreting the kernel, or None to compile it.

    Returns:
        dz [T * 4, hidden, columns] bfloat16, and the cotangents of c and h before the first step, shaped like dc and
        dh.
    """
    time, hidden, columns = steps[0].shape
    leads, slots, sources = geometry.leads, geometry.slots, geometry.sources
    scratch = {
        "w_smem": plgpu.SMEM((slots, sources, geometry.block_units, 4 * UNITS), jnp.bfloat16),
        "dz_smem": plgpu.SMEM((slots, sources, 4 * UNITS, geometry.columns), jnp.bfloat16),
        "factors": plgpu.SMEM((leads, FACTORS, UNITS, geometry.columns), jnp.bfloat16),
        "carry": plgpu.SMEM((leads, 2, UNITS, geometry.columns), jnp.float32),
        "loaded": plgpu.Barrier(num_arrivals=sources * slots),
        "carry_loaded": plgpu.Barrier(num_arrivals=2, num_barriers=leads),
        "fetched": plgpu.Barrier(num_arrivals=FACTORS, num_barriers=leads),
        "dz_ready": ready_barrier(geometry, turns=1),
        "dz_free": free_barrier(geometry),
        **halves_scratch(geometry, sums=1),
    }
    if geometry.spread:
        scratch["out_smem"] = plgpu.SMEM((leads, 4 * UNITS, geometry.columns), jnp.bfloat16)

    def lstm_backward(*refs: Any, **scratch: Any) -> None:
        arguments = (Places.here(geometry), refs[:FACTORS], *refs[FACTORS:], SimpleNamespace(**scratch))
        _run(_Warpgroup._make(arguments), time)

    return launch(
        lstm_backward,
        geometry,
        (*steps, w, dc, dh),
        results=(((time * 4, hidden, columns), jnp.bfloat16), *[((hidden, columns), jnp.float32)] * 2),
        scratch=scratch,
        interpret=interpret,
    )


class _Warpgroup(NamedTuple):
    """A warpgroup and its data: the arguments of `backward_kernel`, the counts from `launch`, results and scratch."""

    at: Places
    steps: tuple[Any, ...]
    w: Any
    dc_last: Any
    dh_last: Any
    counts: Any
    dz_out: Any
    dc_first: Any
    dh_first: Any
    scratch: Any

    def load(self, last: int) -> tuple[Array, Array]:
        """Starts copying w and the last step's factors to shared memory, and returns the final dc and dh."""
        at, scratch = self.at, self.scratch

        @pl.when(at.thread == 0)
        def load_weights() -> None:
            for slot in range(at.geometry.slots):
                for source in range(at.geometry.sources):
                    part = self.w.at[at.block_units, at.summed(slot, source)]
                    plgpu.copy_gmem_to_smem(part, scratch.w_smem.at[slot, source], scratch.loaded)

        @at.lead
        def load_carry() -> None:
            self.fetch(last)
            loaded = scratch.carry_loaded.at[at.group]
            for number, source in enumerate((self.dc_last, self.dh_last)):
                plgpu.copy_gmem_to_smem(source.at[at.units, at.columns], scratch.carry.at[at.group, number], loaded)
            plgpu.barrier_wait(loaded)

        return scratch.carry[at.group, 0], scratch.carry[at.group, 1]

    def fetch(self, t: Array | int) -> None:
        """Starts copying dy and the factors of step t."""
        at, scratch = self.at, self.scratch
        for number, source in enumerate(self.steps):
            target = scratch.factors.at[at.group, number]
            plgpu.copy_gmem_to_smem(source.at[t, at.units, at.columns], target, scratch.fetched.at[at.group])

    def emit(self, t: Array, dz: list[Array]) -> None:
        """Writes dz to where the matmuls read it, and starts copying it to the result."""
        at, scratch, spread = self.at, self.scratch, self.at.geometry.spread
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        # In a single thread block, dz is written directly to where it is read; otherwise, it is sent from here.
        rows = scratch.out_smem.at[at.group] if spread else scratch.dz_smem.at[at.home, at.source]
        own = [rows.at[pl.ds(gate * UNITS, UNITS)] for gate in range(4)]
        for target, part in zip(own, dz, strict=True):
            target[...] = part
        if spread:
            # Read back as one array, so that each thread block gets a single message.
            place = lambda slot: scratch.dz_smem.at[slot, at.source]  # noqa: E731
            publish(at, rows[...], place, scratch.dz_ready, 0, self.counts[0])
        else:
            announce(at, scratch.dz_ready, 0)
        for gate, source in enumerate(own):
            plgpu.copy_smem_to_gmem(source, self.dz_out.at[4 * t + gate, at.units, at.columns])

    def multiply(self) -> Array:
        """Returns the warpgroup's part of dh, summed over all units or over its half of them."""
        at, scratch = self.at, self.scratch

        def sum_up(total: Any) -> Array:
            def add(source: Array, nothing: None) -> None:
                plgpu.wgmma(total, scratch.w_smem.at[at.slot, source, at.own], scratch.dz_smem.at[at.slot, source])
                return nothing

            jax.lax.fori_loop(0, self.counts[1], add, None)
            return total[...]

        return pl.run_scoped(sum_up, sum_ref(at.geometry))


def _run(group: _Warpgroup, time: int) -> None:
    at, scratch = group.at, group.scratch
    last = group.load(time - 1)
    plgpu.barrier_wait(scratch.loaded)
    release(at, scratch.dz_free)

    def step(number: Array, cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
        dc, dh = cotangents
        t = time - 1 - number
        at.lead(lambda: plgpu.barrier_wait(scratch.fetched.at[at.group]))
        now = [scratch.factors[at.group, factor].astype(jnp.float32) for factor in range(FACTORS)]
        at.lead(lambda: pl.when(t > 0)(lambda: group.fetch(t - 1)))
        dc, dz = _through_cell(dc, dh, now)
        plgpu.barrier_wait(scratch.dz_free)
        at.lead(lambda: group.emit(t, dz))
        collect(at, scratch.dz_ready, 0)
        dh = group.multiply()
        release(at, scratch.dz_free)
        return dc, add_halves(at, [dh], scratch, number % 2)[0]

    dc, dh = jax.lax.fori_loop(0, time, step, last)
    plgpu.barrier_wait(scratch.dz_free)
    at.lead(lambda: store_carry(at, scratch.carry, (dc, dh), (group.dc_first, group.dh_first)))


def _through_cell(dc: Array, dh: Array, factors: list[Array]) -> tuple[Array, list[Array]]:
    """Takes the cotangents of c_t and h_t -> the cotangent of c_{t-1}, and dz per gate in bfloat16."""
    dy, of_c, of_i, of_f, of_g, of_o, f = factors
    dh += dy
    dc += dh * of_c
    dz = dc * of_i, dc * of_f, dc * of_g, dh * of_o
    return dc * f, [part.astype(jnp.bfloat16) for part in dz]
