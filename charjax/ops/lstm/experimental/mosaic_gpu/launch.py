"""Launching a kernel and locating a warpgroup within it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from charjax.array_types import Array
from charjax.ops.lstm.experimental.mosaic_gpu.geometry import UNITS, Geometry
from charjax.ops.lstm.vma import alike, result


class Places(NamedTuple):
    """The part of a layer that a warpgroup computes.

    Attributes:
        geometry: how the layer is divided.
        thread: the index of the warpgroup in its thread block.
        group: the index of its group of units in the thread block.
        block: the index of its thread block among those that the units are divided among.
        half: the half that it sums over.
        columns: the sequences of its cluster.
    """

    geometry: Geometry
    thread: Array | int
    group: Array | int
    block: Array | int
    half: Array | int
    columns: Any

    @staticmethod
    def here(geometry: Geometry) -> "Places":
        """Returns the part of the layer that the calling warpgroup computes."""
        # A constant index saves address registers.
        thread = jax.lax.axis_index("thread") if geometry.threads > 1 else 0
        halves = geometry.halves
        columns = pl.ds(jax.lax.axis_index("columns") * geometry.columns, geometry.columns)
        if geometry.flat:
            return Places(geometry, thread, thread // halves, 0, thread % halves, columns)
        if geometry.cluster == 1:
            return Places(geometry, thread, thread, 0, 0, columns)
        block = jax.lax.axis_index("block")
        return Places(geometry, thread, thread, block // halves, block % halves, columns)

    @property
    def own(self) -> Any:
        """The warpgroup's units, counted from the first of the thread block."""
        return pl.ds(self.group * UNITS, UNITS)

    @property
    def number(self) -> Array | int:
        """The index of the warpgroup's group of units in the layer."""
        return self.block * self.geometry.leads + self.group

    @property
    def units(self) -> Any:
        """The warpgroup's units, counted from the first of the layer."""
        return pl.ds(self.number * UNITS, UNITS)

    @property
    def block_units(self) -> Any:
        """The units of the warpgroup's thread block."""
        return pl.ds(self.block * self.geometry.block_units, self.geometry.block_units)

    @property
    def slot(self) -> Array | int:
        """The slot of the warpgroup's half in the shared memory of its thread block."""
        return self.half if self.geometry.flat else 0

    @property
    def home(self) -> Array | int:
        """The half that sums over the warpgroup's units."""
        return self.number // self.geometry.sources if self.geometry.halves > 1 else 0

    @property
    def source(self) -> Array | int:
        """The index of the warpgroup's group of units within the half that sums over them."""
        return self.number % self.geometry.sources

    @property
    def rows(self) -> Any:
        """The warpgroup's units, counted from the first of the half that sums over them."""
        return pl.ds(self.source * UNITS, UNITS)

    def summed(self, slot: int, source: int | None = None) -> Any:
        """Returns the units that a slot's half sums over or, given `source`, its four gates in an array by source."""
        half = slot if self.geometry.flat else self.half
        if source is None:
            return pl.ds(half * self.geometry.summed, self.geometry.summed)
        return pl.ds((half * self.geometry.sources + source) * 4 * UNITS, 4 * UNITS)

    def lead(self, do: Callable[[], None]) -> None:
        """Runs `do` only if the warpgroup is a lead."""
        if self.geometry.halves == 1:
            do()
        else:
            pl.when(self.half == 0)(do)


def launch(
    body: Callable[..., None],
    geometry: Geometry,
    arrays: tuple[Array, ...],
    *,
    results: tuple[tuple[tuple[int, ...], Any], ...],
    scratch: dict[str, Any],
    interpret: Any,
) -> tuple[Array, ...]:
    """Runs a kernel over all columns of the arrays; `results` are shapes and dtypes.

    The kernel gets an additional array, int32 [2], with the geometry's `blocks` and `sources`, to hide these values
    from the compiler, which would otherwise unroll the loops and compute all their addresses before the first step,
    for which there are not enough registers.
    """
    arrays = alike((*arrays, jnp.array((geometry.blocks, geometry.sources), jnp.int32)))
    clustered = geometry.cluster > 1
    kernel = plgpu.kernel(
        body,
        out_type=tuple(result(arrays[0], *each) for each in results),
        scratch_types=scratch,
        grid=(arrays[0].shape[-1] // geometry.columns,),
        grid_names=("columns",),
        cluster=(geometry.cluster,) if clustered else (),
        cluster_names=("block",) if clustered else (),
        num_threads=geometry.threads,
        thread_name="thread",
        # Compiles tanh to one instruction, whose error, 2^-11, is smaller than that of rounding operands to bfloat16.
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )
    # Some Pallas versions drop the axes that the results are declared to vary over.
    return alike((*kernel(*arrays), arrays[0]))[:-1]


def sum_ref(geometry: Geometry) -> Any:
    """Returns an accumulator for the matmuls of a warpgroup."""
    return plgpu.WGMMAAccumulatorRef((UNITS, geometry.columns), jnp.float32)
