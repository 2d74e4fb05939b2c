"""What the device can do at most, as JAX reaches it: a large matmul, and a copy of more than the caches hold."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

REPEATS = 10


def measure(size: int, copied: int) -> dict[str, float]:
    """Measures both.

    Args:
        size: of the square bfloat16 matrices, which are random: zeros multiply faster.
        copied: bytes to copy.

    Returns:
        "matmul_flops" per second, and "copy_bytes" per second, bytes read plus bytes written.
    """
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in range(2))
    numbers = jnp.arange(copied // 4, dtype=jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return {
        "matmul_flops": 2 * size**3 / seconds_of(product, a, b),
        "copy_bytes": 2 * numbers.nbytes / seconds_of(jax.jit(lambda numbers: numbers + 1), numbers),
    }


def seconds_of(run: Callable[..., Any], *arguments: Any, repeats: int = REPEATS) -> float:
    """Returns the seconds of one of many calls in a row, the host waiting only for the last."""
    jax.block_until_ready(run(*arguments))
    begin = time.perf_counter()
    results = [run(*arguments) for _ in range(repeats)]
    jax.block_until_ready(results[-1])
    return (time.perf_counter() - begin) / repeats
