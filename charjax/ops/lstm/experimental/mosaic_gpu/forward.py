"""The forward kernel, which runs all steps in one launch, with the recurrent weights in shared memory."""

from types import SimpleNamespace
from typing import Any, NamedTuple

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
    store_carry,
)
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import UNITS, Geometry
from charjax.ops.lstm.experimental.mosaic_gpu.launch import Places, launch, sum_ref


def forward_kernel(geometry: Geometry, z: Array, w: Array, c: Array, h: Array, interpret: Any) -> tuple[Array, ...]:
    """Runs all steps.

    Args:
        geometry: how the layer is divided.
        z: [T * 4, hidden, columns] bfloat16, the input term of the gates i, f, g, o, plus bias.
        w: [4, hidden after, hidden before] bfloat16.
        c: [hidden, columns] float32, the cell state before the first step.
        h: [hidden, columns] bfloat16, the hidden state before the first step.
        interpret: Pallas's parameters for interpreting the kernel, or None to compile it.

    Returns:
        h and c after every step, [T, hidden, columns] bfloat16, then c and h after the last one, [hidden, columns]
        float32.
    """
    time, columns = z.shape[0] // 4, z.shape[2]
    leads, slots, summed = geometry.leads, geometry.slots, geometry.summed
    steps = ((time, geometry.hidden, columns), jnp.bfloat16)
    state = ((geometry.hidden, columns), jnp.float32)

    def lstm_forward(*refs: Any, **scratch: Any) -> None:
        _run(_Warpgroup._make((Places.here(geometry), *refs, SimpleNamespace(**scratch))), time)

    return launch(
        lstm_forward,
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


class _Warpgroup(NamedTuple):
    """A warpgroup and its data: the arguments of `forward_kernel`, the counts from `launch`, results and scratch."""

    at: Places
    z: Any
    w: Any
    c_first: Any
    h_first: Any
    counts: Any
    h_out: Any
    c_out: Any
    c_last: Any
    h_last: Any
    scratch: Any

    def load(self) -> Array:
        """Starts copying w, h and the first z to shared memory, and returns the initial c."""
        at, scratch = self.at, self.scratch

        @pl.when(at.thread == 0)
        def load_weights_and_h() -> None:
            for slot in range(at.geometry.slots):
                for gate in range(4):
                    source = self.w.at[gate, at.block_units, at.summed(slot)]
                    plgpu.copy_gmem_to_smem(source, scratch.w_smem.at[gate, slot], scratch.loaded)
                source = self.h_first.at[at.summed(slot), at.columns]
                plgpu.copy_gmem_to_smem(source, scratch.h_smem.at[0, slot], scratch.loaded)

        @at.lead
        def load_c() -> None:
            loaded = scratch.c_loaded.at[at.group]
            plgpu.copy_gmem_to_smem(self.c_first.at[at.units, at.columns], scratch.carry.at[at.group, 0], loaded)
            plgpu.barrier_wait(loaded)

        c: Array = scratch.carry[at.group, 0]
        at.lead(lambda: self.fetch(0))
        return c

    def fetch(self, t: Array | int) -> None:
        """Starts copying the z of step t."""
        at, scratch = self.at, self.scratch
        for gate in range(4):
            source = self.z.at[4 * t + gate, at.units, at.columns]
            plgpu.copy_gmem_to_smem(source, scratch.z_smem.at[at.group, gate], scratch.z_ready.at[at.group])

    def multiply(self, now: Array) -> tuple[list[Array], list[Array]]:
        """Returns w_hh h and z, [UNITS, columns] float32 per gate; `now` is the index of the buffer with h."""
        at, scratch = self.at, self.scratch

        def run(*totals: Any) -> tuple[list[Array], list[Array]]:
            for gate, total in enumerate(totals):
                plgpu.wgmma(total, scratch.w_smem.at[gate, at.slot, at.own], scratch.h_smem.at[now, at.slot])
            # z is waited for and read while the matmuls run.
            at.lead(lambda: plgpu.barrier_wait(scratch.z_ready.at[at.group]))
            z_t = [scratch.z_smem[at.group, gate].astype(jnp.float32) for gate in range(4)]
            return [total[...] for total in totals], z_t

        products: tuple[list[Array], list[Array]] = pl.run_scoped(run, *[sum_ref(at.geometry)] * 4)
        return products

    def emit(self, t: Array, then: Array, c: Array, h: Array) -> None:
        """Writes h to where the next step's matmuls read it, and starts copying h and c to the results."""
        at, out = self.at, self.scratch.out_smem
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out[at.group, 0] = h.astype(jnp.bfloat16)
        out[at.group, 1] = c.astype(jnp.bfloat16)
        place = lambda slot: self.scratch.h_smem.at[then, slot, at.rows]  # noqa: E731
        publish(at, h.astype(jnp.bfloat16), place, self.scratch.h_ready, then, self.counts[0])
        plgpu.copy_smem_to_gmem(out.at[at.group, 0], self.h_out.at[t, at.units, at.columns])
        plgpu.copy_smem_to_gmem(out.at[at.group, 1], self.c_out.at[t, at.units, at.columns])


def _run(group: _Warpgroup, time: int) -> None:
    at, scratch = group.at, group.scratch
    first = group.load(), jnp.zeros((UNITS, at.geometry.columns), jnp.float32)
    plgpu.barrier_wait(scratch.loaded)

    def step(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        c, _ = state
        now, then = t % 2, (t + 1) % 2
        sums, z_t = group.multiply(now)
        at.lead(lambda: pl.when(t + 1 < time)(lambda: group.fetch(t + 1)))
        sums = add_halves(at, sums, scratch, now)
        i, f, g, o = (total + part for total, part in zip(sums, z_t, strict=True))
        c = _sigmoid(f) * c + _sigmoid(i) * jnp.tanh(g)
        h = _sigmoid(o) * jnp.tanh(c)
        at.lead(lambda: group.emit(t, then, c, h))
        collect(at, scratch.h_ready, then)
        return c, h

    c, h = jax.lax.fori_loop(0, time, step, first)
    at.lead(lambda: store_carry(at, scratch.carry, (c, h), (group.c_last, group.h_last)))


def _sigmoid(x: Array) -> Array:
    """Computes the sigmoid with tanh, a single special-function instruction; the exponential form takes two."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5
