"""What arrays vary over under `jax.shard_map`, for operations that do not tell by themselves."""

import jax

from charjax.types import Array


def vary_alike(*arrays: Array, axes: frozenset[str] = frozenset()) -> tuple[Array, ...]:
    """Marks every array as varying over all mesh axes that any of them, or `axes`, varies over."""
    every = axes.union(*map(varying_axes, arrays))
    missing = [tuple(every - varying_axes(array)) for array in arrays]
    return tuple(
        jax.lax.pcast(array, names, to="varying") if names else array
        for array, names in zip(arrays, missing, strict=True)
    )


def varying_axes(array: Array) -> frozenset[str]:
    """The mesh axes that an array varies over; none outside of `jax.shard_map`."""
    return jax.typeof(array).manual_axis_type.varying
