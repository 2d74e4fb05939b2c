"""The forward kernel: the whole sequence in one launch, with the recurrent weights in shared memory throughout."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.ops.lstm.mosaic_gpu.geometry import COLUMNS, UNITS, Geometry
from charjax.ops.lstm.mosaic_gpu.launch import Places, launch
from charjax.types import Array


def forward_kernel(geometry: Geometry, z: Array, w: Array, c: Array, h: Array, interpret: Any) -> tuple[Array, ...]:
    """Runs all steps.

    Args:
        geometry: the share-out.
        z: [T * 4, hidden, columns] float32, the inputs' part of the gates i, f, g, o.
        w: [4, hidden after, hidden before] bfloat16.
        c: [hidden, columns] float32, before the first step.
        h: [hidden, columns] bfloat16, before the first step.
        interpret: what `plgpu.kernel` is to be interpreted with, or None to compile it.

    Returns:
        h and c after every step, [T, hidden, columns] bfloat16, and after the last, [hidden, columns] float32.
    """
    time, hidden, columns = z.shape[0] // 4, geometry.hidden, z.shape[2]
    groups = geometry.warpgroups
    steps = ((time, hidden, columns), jnp.bfloat16)
    state = ((hidden, columns), jnp.float32)
    return launch(
        _body(geometry, time),
        geometry,
        (z, w, c, h),
        results=(steps, steps, state, state),
        scratch={
            "w_smem": plgpu.SMEM((4, geometry.block_units, hidden), jnp.bfloat16),
            "h_smem": plgpu.SMEM((2, hidden, COLUMNS), jnp.bfloat16),
            "z_smem": plgpu.SMEM((groups, 4, UNITS, COLUMNS), jnp.float32),
            "out_smem": plgpu.SMEM((groups, 2, UNITS, COLUMNS), jnp.bfloat16),
            "loaded": plgpu.Barrier(num_arrivals=5 + groups),
            "z_ready": plgpu.Barrier(num_arrivals=4, num_barriers=groups),
            "h_ready": plgpu.Barrier(num_arrivals=groups, num_barriers=2),
        },
        interpret=interpret,
    )


def _body(geometry: Geometry, time: int) -> Callable[..., None]:
    def lstm_forward(
        z: Any,
        w: Any,
        c_first: Any,
        h_first: Any,
        h_out: Any,
        c_out: Any,
        c_last: Any,
        h_last: Any,
        *,
        w_smem: Any,
        h_smem: Any,
        z_smem: Any,
        out_smem: Any,
        loaded: Any,
        z_ready: Any,
        h_ready: Any,
    ) -> None:
        at = Places.here(geometry)

        def fetch(step: Array | int) -> None:
            for gate in range(4):
                source = z.at[4 * step + gate, at.units, at.columns]
                plgpu.copy_gmem_to_smem(source, z_smem.at[at.group, gate], z_ready.at[at.group])

        @pl.when(at.group == 0)
        def load() -> None:
            for gate in range(4):
                plgpu.copy_gmem_to_smem(w.at[gate, at.block_units], w_smem.at[gate], loaded)
            plgpu.copy_gmem_to_smem(h_first.at[:, at.columns], h_smem.at[0], loaded)
            for group in range(geometry.warpgroups):
                plgpu.copy_gmem_to_smem(c_first.at[at.units_of(group), at.columns], z_smem.at[group, 0], loaded)

        plgpu.barrier_wait(loaded)
        first = z_smem[at.group, 0], jnp.zeros((UNITS, COLUMNS), jnp.float32)
        fetch(0)

        def step(t: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            c, _ = carry
            now, then = t % 2, (t + 1) % 2

            def gates(*sums: Any) -> list[Array]:
                for gate, total in enumerate(sums):
                    plgpu.wgmma(total, w_smem.at[gate, at.own], h_smem.at[now])
                # Read while the products run, which also frees the memory for the next step's early.
                plgpu.barrier_wait(z_ready.at[at.group])
                z_t = [z_smem[at.group, gate] for gate in range(4)]
                return [total[...] + part for total, part in zip(sums, z_t, strict=True)]

            i, f, g, o = pl.run_scoped(gates, *[plgpu.WGMMAAccumulatorRef((UNITS, COLUMNS), jnp.float32)] * 4)

            @pl.when(t + 1 < time)
            def fetch_next() -> None:
                fetch(t + 1)

            c = _sigmoid(f) * c + _sigmoid(i) * jnp.tanh(g)
            h = _sigmoid(o) * jnp.tanh(c)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            h_smem[then, at.units] = h.astype(jnp.bfloat16)
            out_smem[at.group, 0] = h.astype(jnp.bfloat16)
            out_smem[at.group, 1] = c.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.barrier_arrive(h_ready.at[then])
            plgpu.copy_smem_to_gmem(out_smem.at[at.group, 0], h_out.at[t, at.units, at.columns])
            plgpu.copy_smem_to_gmem(out_smem.at[at.group, 1], c_out.at[t, at.units, at.columns])
            plgpu.barrier_wait(h_ready.at[then])
            return c, h

        c, h = jax.lax.fori_loop(0, time, step, first)
        z_smem[at.group, 0] = c
        z_smem[at.group, 1] = h
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(z_smem.at[at.group, 0], c_last.at[at.units, at.columns])
        plgpu.copy_smem_to_gmem(z_smem.at[at.group, 1], h_last.at[at.units, at.columns])
        plgpu.wait_smem_to_gmem(0)

    return lstm_forward


def _sigmoid(x: Array) -> Array:
    """One instruction of the special function unit, where the exponential's form takes two."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5
