"""Starting a kernel, and where in it a warpgroup finds itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import NamedSharding, PartitionSpec

from charjax.ops.lstm.mosaic_gpu.geometry import COLUMNS, UNITS, Geometry
from charjax.ops.lstm.varying import alike
from charjax.types import Array


class Places(NamedTuple):
    """What a warpgroup works on.

    Attributes:
        group: its number in the thread block.
        block_units: the units of its thread block.
        first: the first of them.
        columns: the sequences of its thread block.
    """

    group: Array
    block_units: Any
    first: Array | int
    columns: Any

    @staticmethod
    def here(geometry: Geometry) -> "Places":
        """For the warpgroup that asks."""
        columns = pl.ds(jax.lax.axis_index("columns") * COLUMNS, COLUMNS)
        return Places(jax.lax.axis_index("group"), pl.ds(0, geometry.block_units), 0, columns)

    @property
    def own(self) -> Any:
        """Its units, counted from the first of the thread block."""
        return pl.ds(self.group * UNITS, UNITS)

    @property
    def units(self) -> Any:
        """Its units, counted from the layer's first."""
        return self.units_of(self.group)

    def units_of(self, group: Array | int) -> Any:
        """Those of another warpgroup of the thread block."""
        return pl.ds(self.first + group * UNITS, UNITS)


def launch(
    body: Callable[..., None],
    geometry: Geometry,
    arrays: tuple[Array, ...],
    *,
    results: tuple[tuple[tuple[int, ...], Any], ...],
    scratch: dict[str, Any],
    interpret: Any,
) -> tuple[Array, ...]:
    """Runs a kernel over all columns of the arrays; `results` are shapes and dtypes."""
    arrays = alike(arrays)
    columns = arrays[0].shape[-1]
    axes = jax.typeof(arrays[0]).manual_axis_type
    # What varies over the devices of a shard_map has to name its mesh as well.
    placed = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec()) if axes.varying else None
    out = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=placed, manual_axis_type=axes) for shape, dtype in results)
    # tanh as one instruction: its error, 2^-11, is below that of the operands' rounding to bfloat16.
    parameters = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
    kernel = plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=(columns // COLUMNS,),
        grid_names=("columns",),
        num_threads=geometry.warpgroups,
        thread_name="group",
        compiler_params=parameters,
        interpret=interpret,
    )
    # Some versions of Pallas forget what the results were declared to vary over.
    return alike((*kernel(*arrays), arrays[0]))[:-1]
