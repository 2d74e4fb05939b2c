"""Higher derivatives for implementations with a hand-written backward pass.

JAX cannot differentiate such a backward pass: custom calls have no derivative, and bfloat16 values stored as bits would
silently lose theirs. Instead, the derivative of the backward pass comes from another implementation, which JAX can
differentiate any number of times in reverse mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array

# Pytrees of arrays -> a pytree of arrays.
Function = Callable[..., Any]


def with_higher_derivatives(run: Function, reference: Function) -> Function:
    """Returns a function with the values and gradients of `run` and the higher derivatives of `reference`.

    `run`, its forward pass with residuals, and its backward pass each get their own differentiation rule. The
    cotangents of residuals are ignored, because residuals are functions of the arguments, and the derivative with
    respect to the arguments is already complete.
    """
    value = jax.custom_vjp(run)
    forward = jax.custom_vjp(lambda *args: jax.vjp(run, *args))
    backward = jax.custom_vjp(lambda args, pull, cotangent: pull(cotangent))

    def save(*args: Any) -> tuple[Any, Any]:
        out, pull = forward(*args)
        return out, (args, pull)

    def save_forward(*args: Any) -> tuple[Any, Any]:
        out, pull = forward(*args)
        return (out, pull), (args, pull)

    def differentiate(kept: Any, cotangents: Any) -> tuple[Any, Any, Any]:
        args, pull, cotangent = kept
        by_args, by_cotangent = _of_gradient(reference, args, cotangent, cotangents)
        return by_args, jax.tree.map(_zeros, pull), by_cotangent

    value.defvjp(save, lambda kept, cotangent: backward(*kept, cotangent))
    forward.defvjp(save_forward, lambda kept, cotangents: backward(*kept, cotangents[0]))
    backward.defvjp(lambda *kept: (backward(*kept), kept), differentiate)
    return value


def _of_gradient(reference: Function, args: Sequence[Any], cotangent: Any, cotangents: Any) -> tuple[Any, Any]:
    """Pulls the cotangents of a gradient back to the arguments and to the cotangent it was computed from."""
    leaves, structure = jax.tree.flatten(tuple(args))
    real = [n for n, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def gradient(cotangent: Any, *values: Array) -> Any:
        def run(*values: Array) -> Any:
            return reference(*jax.tree.unflatten(structure, _with(leaves, real, values)))

        return jax.vjp(run, *values)[1](cotangent)

    pull = jax.vjp(gradient, cotangent, *(leaves[n] for n in real))[1]
    wanted = jax.tree.leaves(cotangents)
    by_cotangent, *by_values = pull(tuple(wanted[n] for n in real))
    zeros = [_zeros(leaf) for leaf in leaves]
    return jax.tree.unflatten(structure, _with(zeros, real, by_values)), by_cotangent


def _with(leaves: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Returns the leaves, with those at `places` replaced by `values`."""
    replaced = dict(zip(places, values, strict=True))
    return [replaced.get(n, leaf) for n, leaf in enumerate(leaves)]


def _zeros(leaf: Array) -> Any:
    return jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.zeros(leaf.shape, jax.dtypes.float0)
