"""The backward kernel: all steps from the last to the first in one launch, the recurrent weights in shared memory."""

from collections.abc import Callable
from typing import Any

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
)
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import UNITS, Geometry
from charjax.ops.lstm.experimental.mosaic_gpu.launch import Places, launch, sum_ref

FACTORS = 7  # dy, and the six of `recompute.Factors`


def backward_kernel(
    geometry: Geometry, steps: tuple[Array, ...], w: Array, dc: Array, dh: Array, interpret: Any
) -> tuple[Array, ...]:
    """Runs all steps.

    Args:
        geometry: the share-out.
        steps: dy and the factors of_c, of_i, of_f, of_g, of_o, f, each [T, hidden, columns] bfloat16.
        w: [hidden before, groups of UNITS units, 4, UNITS after] bfloat16, the last three as one dimension.
        dc: [hidden, columns] float32, the cotangent of c after the last step.
        dh: [hidden, columns] float32, the cotangent of h after the last step.
        interpret: what `plgpu.kernel` is to be interpreted with, or None to compile it.

    Returns:
        dz [T * 4, hidden, columns] bfloat16, and the cotangents of c and h before the first step, as dc and dh.
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
    return launch(
        _body(geometry, time),
        geometry,
        (*steps, w, dc, dh),
        results=(((time * 4, hidden, columns), jnp.bfloat16), *[((hidden, columns), jnp.float32)] * 2),
        scratch=scratch,
        interpret=interpret,
    )


def _body(geometry: Geometry, time: int) -> Callable[..., None]:
    def lstm_backward(
        *refs: Any,
        w_smem: Any,
        dz_smem: Any,
        factors: Any,
        carry: Any,
        loaded: Any,
        carry_loaded: Any,
        fetched: Any,
        dz_ready: Any,
        dz_free: Any,
        out_smem: Any = None,
        halves: Any = None,
        halves_ready: Any = None,
    ) -> None:
        *steps, w, dc_last, dh_last, counts, dz_out, dc_first, dh_first = refs
        at = Places.here(geometry)
        # What a lead hands on, gate by gate: where it is needed already, if that is in one thread block.
        rows = out_smem.at[at.group] if geometry.spread else dz_smem.at[at.home, at.source]
        own = [rows.at[pl.ds(gate * UNITS, UNITS)] for gate in range(4)]

        def fetch(t: Array | int) -> None:
            for number, source in enumerate(steps):
                target = factors.at[at.group, number]
                plgpu.copy_gmem_to_smem(source.at[t, at.units, at.columns], target, fetched.at[at.group])

        @pl.when(at.thread == 0)
        def load() -> None:
            for slot in range(geometry.slots):
                for source in range(geometry.sources):
                    part = w.at[at.block_units, at.summed(slot, source)]
                    plgpu.copy_gmem_to_smem(part, w_smem.at[slot, source], loaded)

        @at.lead
        def load_carry() -> None:
            fetch(time - 1)
            for number, source in enumerate((dc_last, dh_last)):
                target = carry.at[at.group, number]
                plgpu.copy_gmem_to_smem(source.at[at.units, at.columns], target, carry_loaded.at[at.group])
            plgpu.barrier_wait(carry_loaded.at[at.group])

        last = carry[at.group, 0], carry[at.group, 1]
        plgpu.barrier_wait(loaded)
        release(at, dz_free)

        def step(number: Array, cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
            dc, dh = cotangents
            t = time - 1 - number

            @at.lead
            def await_factors() -> None:
                plgpu.barrier_wait(fetched.at[at.group])

            now = [factors[at.group, factor].astype(jnp.float32) for factor in range(FACTORS)]

            @at.lead
            def fetch_next() -> None:
                pl.when(t > 0)(lambda: fetch(t - 1))

            dc, dz = _through_cell(dc, dh, now)
            plgpu.barrier_wait(dz_free)

            @at.lead
            def hand_on() -> None:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                for target, part in zip(own, dz, strict=True):
                    target[...] = part
                if geometry.spread:
                    # Read back as one array, for a single message to each thread block.
                    publish(at, rows[...], lambda slot: dz_smem.at[slot, at.source], dz_ready, 0, counts[0])
                else:
                    announce(at, dz_ready, 0)
                for gate, source in enumerate(own):
                    plgpu.copy_smem_to_gmem(source, dz_out.at[4 * t + gate, at.units, at.columns])

            collect(at, dz_ready, 0)

            dh = _product(at, w_smem, dz_smem, counts[1])
            release(at, dz_free)
            return dc, add_halves(at, [dh], halves, halves_ready, number % 2)[0]

        dc, dh = jax.lax.fori_loop(0, time, step, last)
        plgpu.barrier_wait(dz_free)

        @at.lead
        def finish() -> None:
            carry[at.group, 0] = dc
            carry[at.group, 1] = dh
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(carry.at[at.group, 0], dc_first.at[at.units, at.columns])
            plgpu.copy_smem_to_gmem(carry.at[at.group, 1], dh_first.at[at.units, at.columns])
            plgpu.wait_smem_to_gmem(0)

    return lstm_backward


def _through_cell(dc: Array, dh: Array, factors: list[Array]) -> tuple[Array, list[Array]]:
    """The cotangents of one step's c and h -> that of the c before, and dz by gates in bfloat16."""
    dy, of_c, of_i, of_f, of_g, of_o, f = factors
    dh += dy
    dc += dh * of_c
    dz = dc * of_i, dc * of_f, dc * of_g, dh * of_o
    return dc * f, [part.astype(jnp.bfloat16) for part in dz]


def _product(at: Places, w_smem: Any, dz_smem: Any, sources: Array) -> Array:
    """A warpgroup's part of dh, or of the half of dh that it sums up."""

    def sum_up(total: Any) -> Array:
        def add(source: Array, nothing: None) -> None:
            plgpu.wgmma(total, w_smem.at[at.slot, source, at.own], dz_smem.at[at.slot, source])
            return nothing

        jax.lax.fori_loop(0, sources, add, None)
        return total[...]

    return pl.run_scoped(sum_up, sum_ref(at.geometry))
