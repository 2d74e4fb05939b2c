"""The forward kernel: the whole sequence in one launch, with the recurrent weights in shared memory throughout."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.array_types import Array
from charjax.ops.lstm.experimental.mosaic_gpu.exchange import (
    add_halves,
    collect,
    halves_scratch,
    publish,
    ready_barrier,
)
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import UNITS, Geometry
from charjax.ops.lstm.experimental.mosaic_gpu.launch import Places, launch, sum_ref


def forward_kernel(geometry: Geometry, z: Array, w: Array, c: Array, h: Array, interpret: Any) -> tuple[Array, ...]:
    """Runs all steps.

    Args:
        geometry: the share-out.
        z: [T * 4, hidden, columns] bfloat16, the inputs' part of the gates i, f, g, o.
        w: [4, hidden after, hidden before] bfloat16.
        c: [hidden, columns] float32, before the first step.
        h: [hidden, columns] bfloat16, before the first step.
        interpret: what `plgpu.kernel` is to be interpreted with, or None to compile it.

    Returns:
        h and c after every step, [T, hidden, columns] bfloat16, and after the last, [hidden, columns] float32.
    """
    time, columns = z.shape[0] // 4, z.shape[2]
    leads, slots, summed = geometry.leads, geometry.slots, geometry.summed
    steps = ((time, geometry.hidden, columns), jnp.bfloat16)
    state = ((geometry.hidden, columns), jnp.float32)
    return launch(
        _body(geometry, time),
        geometry,
        (z, w, c, h),
        results=(steps, steps, state, state),
        scratch={
            "w_smem": plgpu.SMEM((4, slots, geometry.block_units, summed), jnp.bfloat16),
            "h_smem": plgpu.SMEM((2, slots, summed, geometry.columns), jnp.bfloat16),
            "z_smem": plgpu.SMEM((leads, 4, UNITS, geometry.columns), jnp.bfloat16),
            "carry": plgpu.SMEM((leads, 2, UNITS, geometry.columns), jnp.float32),
            "out_smem": plgpu.SMEM((leads, 2, UNITS, geometry.columns), jnp.bfloat16),
            "loaded": plgpu.Barrier(num_arrivals=5 * slots),
            "c_loaded": plgpu.Barrier(num_barriers=leads),
            "z_ready": plgpu.Barrier(num_arrivals=4, num_barriers=leads),
            "h_ready": ready_barrier(geometry, turns=2),
            **halves_scratch(geometry, sums=4),
        },
        interpret=interpret,
    )


def _body(geometry: Geometry, time: int) -> Callable[..., None]:
    def lstm_forward(
        z: Any,
        w: Any,
        c_first: Any,
        h_first: Any,
        counts: Any,
        h_out: Any,
        c_out: Any,
        c_last: Any,
        h_last: Any,
        *,
        w_smem: Any,
        h_smem: Any,
        z_smem: Any,
        carry: Any,
        out_smem: Any,
        loaded: Any,
        c_loaded: Any,
        z_ready: Any,
        h_ready: Any,
        halves: Any = None,
        halves_ready: Any = None,
    ) -> None:
        at = Places.here(geometry)

        def fetch(t: Array | int) -> None:
            for gate in range(4):
                source = z.at[4 * t + gate, at.units, at.columns]
                plgpu.copy_gmem_to_smem(source, z_smem.at[at.group, gate], z_ready.at[at.group])

        @pl.when(at.thread == 0)
        def load() -> None:
            for slot in range(geometry.slots):
                for gate in range(4):
                    source = w.at[gate, at.block_units, at.summed(slot)]
                    plgpu.copy_gmem_to_smem(source, w_smem.at[gate, slot], loaded)
                plgpu.copy_gmem_to_smem(h_first.at[at.summed(slot), at.columns], h_smem.at[0, slot], loaded)

        @at.lead
        def load_c() -> None:
            plgpu.copy_gmem_to_smem(c_first.at[at.units, at.columns], carry.at[at.group, 0], c_loaded.at[at.group])
            plgpu.barrier_wait(c_loaded.at[at.group])

        first = carry[at.group, 0], jnp.zeros((UNITS, geometry.columns), jnp.float32)

        @at.lead
        def fetch_first() -> None:
            fetch(0)

        plgpu.barrier_wait(loaded)

        def step(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            c, _ = state
            now, then = t % 2, (t + 1) % 2

            def products(*totals: Any) -> tuple[list[Array], list[Array]]:
                for gate, total in enumerate(totals):
                    plgpu.wgmma(total, w_smem.at[gate, at.slot, at.own], h_smem.at[now, at.slot])

                # Waited for and read while the products run.
                @at.lead
                def await_z() -> None:
                    plgpu.barrier_wait(z_ready.at[at.group])

                z_t = [z_smem[at.group, gate].astype(jnp.float32) for gate in range(4)]
                return [total[...] for total in totals], z_t

            sums, z_t = pl.run_scoped(products, *[sum_ref(geometry)] * 4)

            @at.lead
            def fetch_next() -> None:
                pl.when(t + 1 < time)(lambda: fetch(t + 1))

            sums = add_halves(at, sums, halves, halves_ready, now)
            i, f, g, o = (total + part for total, part in zip(sums, z_t, strict=True))
            c = _sigmoid(f) * c + _sigmoid(i) * jnp.tanh(g)
            h = _sigmoid(o) * jnp.tanh(c)

            @at.lead
            def hand_on() -> None:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                out_smem[at.group, 0] = h.astype(jnp.bfloat16)
                out_smem[at.group, 1] = c.astype(jnp.bfloat16)
                publish(
                    at, h.astype(jnp.bfloat16), lambda slot: h_smem.at[then, slot, at.rows], h_ready, then, counts[0]
                )
                plgpu.copy_smem_to_gmem(out_smem.at[at.group, 0], h_out.at[t, at.units, at.columns])
                plgpu.copy_smem_to_gmem(out_smem.at[at.group, 1], c_out.at[t, at.units, at.columns])

            collect(at, h_ready, then)
            return c, h

        c, h = jax.lax.fori_loop(0, time, step, first)

        @at.lead
        def finish() -> None:
            carry[at.group, 0] = c
            carry[at.group, 1] = h
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(carry.at[at.group, 0], c_last.at[at.units, at.columns])
            plgpu.copy_smem_to_gmem(carry.at[at.group, 1], h_last.at[at.units, at.columns])
            plgpu.wait_smem_to_gmem(0)

    return lstm_forward


def _sigmoid(x: Array) -> Array:
    """One instruction of the special function unit, where the exponential's form takes two."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5
