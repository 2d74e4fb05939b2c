"""What a custom call or a kernel asks of its arguments under shard_map."""

import jax

from charjax.types import Array


def alike(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Under shard_map, makes all arrays vary over the devices if one does."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    wanted = frozenset().union(*varying)
    return tuple(
        jax.lax.pcast(array, tuple(wanted - axes), to="varying") if wanted - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    )
