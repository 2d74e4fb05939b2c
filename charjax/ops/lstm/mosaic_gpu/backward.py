"""The backward kernel: all steps from the last to the first in one launch, the recurrent weights in shared memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.ops.lstm.mosaic_gpu.geometry import COLUMNS, UNITS, Geometry
from charjax.ops.lstm.mosaic_gpu.launch import Places, launch
from charjax.types import Array

FACTORS = 7  # dy, and the six of `recompute.Factors`


def backward_kernel(
    geometry: Geometry, steps: tuple[Array, ...], w: Array, carry: Array, interpret: Any
) -> tuple[Array, ...]:
    """Runs all steps.

    Args:
        geometry: the share-out.
        steps: dy and the factors of_c, of_i, of_f, of_g, of_o, f, each [T, hidden, columns] bfloat16.
        w: [4, hidden before, hidden after] bfloat16.
        carry: [4, hidden, columns] bfloat16, the cotangents dc and dh of the last step, each as a sum of two terms.
        interpret: what `plgpu.kernel` is to be interpreted with, or None to compile it.

    Returns:
        dz [T * 4, hidden, columns] bfloat16, and the cotangents before the first step, as `carry`.
    """
    time, hidden, columns = steps[0].shape
    groups = geometry.warpgroups
    return launch(
        _body(geometry, time),
        geometry,
        (*steps, w, carry),
        results=(((time * 4, hidden, columns), jnp.bfloat16), ((4, hidden, columns), jnp.bfloat16)),
        scratch={
            "w_smem": plgpu.SMEM((4, geometry.block_units, hidden), jnp.bfloat16),
            "dz_smem": plgpu.SMEM((4, hidden, COLUMNS), jnp.bfloat16),
            "factors": plgpu.SMEM((groups, FACTORS, UNITS, COLUMNS), jnp.bfloat16),
            "loaded": plgpu.Barrier(num_arrivals=8),
            "fetched": plgpu.Barrier(num_arrivals=FACTORS, num_barriers=groups),
            "dz_ready": plgpu.Barrier(num_arrivals=groups),
            "dz_free": plgpu.Barrier(num_arrivals=groups),
        },
        interpret=interpret,
    )


def _body(geometry: Geometry, time: int) -> Callable[..., None]:
    def lstm_backward(
        *refs: Any,
        w_smem: Any,
        dz_smem: Any,
        factors: Any,
        loaded: Any,
        fetched: Any,
        dz_ready: Any,
        dz_free: Any,
    ) -> None:
        *steps, w, carry_last, dz_out, carry_first = refs
        at = Places.here(geometry)

        def fetch(t: Array | int) -> None:
            for number, source in enumerate(steps):
                target = factors.at[at.group, number]
                plgpu.copy_gmem_to_smem(source.at[t, at.units, at.columns], target, fetched.at[at.group])

        @pl.when(at.group == 0)
        def load() -> None:
            for gate in range(4):
                plgpu.copy_gmem_to_smem(w.at[gate, at.block_units], w_smem.at[gate], loaded)
                plgpu.copy_gmem_to_smem(carry_last.at[gate, :, at.columns], dz_smem.at[gate], loaded)

        fetch(time - 1)
        plgpu.barrier_wait(loaded)
        terms = [dz_smem[part, at.units].astype(jnp.float32) for part in range(4)]
        plgpu.barrier_arrive(dz_free)

        def step(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            dc, dh = carry
            t = time - 1 - number
            plgpu.barrier_wait(fetched.at[at.group])
            dy, of_c, of_i, of_f, of_g, of_o, f = (
                factors[at.group, factor].astype(jnp.float32) for factor in range(FACTORS)
            )

            @pl.when(t > 0)
            def fetch_next() -> None:
                fetch(t - 1)

            dh += dy
            dc += dh * of_c
            dz = dc * of_i, dc * of_f, dc * of_g, dh * of_o
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_wait(dz_free)
            for gate in range(4):
                dz_smem[gate, at.units] = dz[gate].astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.barrier_arrive(dz_ready)
            for gate in range(4):
                target = dz_out.at[4 * t + gate, at.units, at.columns]
                plgpu.copy_smem_to_gmem(dz_smem.at[gate, at.units], target)
            plgpu.barrier_wait(dz_ready)

            def product(total: Any) -> Array:
                for gate in range(4):
                    plgpu.wgmma(total, w_smem.at[gate, at.own], dz_smem.at[gate])
                return total[...]

            dh = pl.run_scoped(product, plgpu.WGMMAAccumulatorRef((UNITS, COLUMNS), jnp.float32))
            plgpu.barrier_arrive(dz_free)
            return dc * f, dh

        dc, dh = jax.lax.fori_loop(0, time, step, (terms[0] + terms[1], terms[2] + terms[3]))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        plgpu.barrier_wait(dz_free)
        for part, value in enumerate((dc, dh)):
            term = value.astype(jnp.bfloat16)
            dz_smem[2 * part, at.units] = term
            dz_smem[2 * part + 1, at.units] = (value - term.astype(jnp.float32)).astype(jnp.bfloat16)
        plgpu.commit_smem()
        for part in range(4):
            plgpu.copy_smem_to_gmem(dz_smem.at[part, at.units], carry_first.at[part, at.units, at.columns])
        plgpu.wait_smem_to_gmem(0)

    return lstm_backward
