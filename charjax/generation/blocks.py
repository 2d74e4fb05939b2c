"""Generation in blocks of characters; sizes are rounded up to whole blocks, to limit recompilation."""

from charjax.ops.lstm.target import target_platform

# The number of characters for which noise is computed at once.
BLOCK = 16


def capacity_for(length: int) -> int:
    """Rounds a number of characters up to a power-of-two number of blocks, to limit recompilation; 0 stays 0."""
    blocks = -(-length // BLOCK)
    return BLOCK << max(0, blocks - 1).bit_length() if blocks else 0


def steps_per_trip() -> int:
    """Returns the number of steps that a loop should take per iteration.

    On a GPU, the host checks the loop condition at each iteration. On a CPU, unrolling gains nothing and slows down
    compilation.
    """
    return 1 if target_platform() == "cpu" else BLOCK
