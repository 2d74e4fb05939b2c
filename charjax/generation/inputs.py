"""Validates what callers pass along with a model: parameters, ids and PRNG keys. Compiled code trusts what passed."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.errors import UserError
from charjax.model import CharLSTM, init_params

# Models whose parameter shapes are kept.
_SHAPES_KEPT = 16


def checked_params(model: CharLSTM, params: Params) -> Params:
    """Compares the parameters with what the model needs, and returns them in float32.

    Arrays that are being traced, in a caller's `jit` or `vmap`, have no values yet: only their shapes are checked.

    Raises:
        UserError: names or shapes differ, or values are not finite floating-point numbers.
    """
    if isinstance(params, Mapping) and set(params) == {"params"}:
        raise UserError('params must be the parameters themselves: give variables["params"] instead of variables')
    found, expected = _by_name(params), _shapes(model)
    for name in expected:
        if name not in found:
            raise UserError(f"params has no {name}, which this model needs; see init_params")
    for name, leaf in found.items():
        if name not in expected:
            raise UserError(f"params has {name}, which this model does not need; see init_params")
        if np.shape(leaf) != expected[name]:
            raise UserError(f"params has {name} of shape {np.shape(leaf)}; this model needs {expected[name]}")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise UserError(f"params has {name} of dtype {jnp.result_type(leaf)}, which is not floating-point")
        # A bias of -inf excludes a character.
        if not (_is_finite(leaf) or (name == "head.bias" and bool((leaf < jnp.inf).all()))):
            raise UserError(f"the parameters have values in {name} that are not finite; train the model again")
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.float32 else jnp.asarray(leaf, jnp.float32), params)


def checked_ids(ids: jax.typing.ArrayLike, vocab_size: int, shape: str, name: str = "ids") -> Any:
    """Checks ids and returns them as NumPy int32; an array that is being traced is returned unchanged.

    Args:
        ids: the ids.
        vocab_size: V.
        shape: the dimensions that they must have, such as "[B, P]".
        name: what the caller calls them.

    Raises:
        UserError: the ids have another number of dimensions, are not integers, or are not in [0, V).
    """
    try:
        array = ids if isinstance(ids, jax.core.Tracer) else np.asarray(ids)
    except ValueError:  # lists of different lengths
        raise UserError(f"{name} must be {shape} integers, all rows equally long") from None
    if array.ndim != shape.count(",") + 1 or (array.size and not jnp.issubdtype(array.dtype, jnp.integer)):
        hint = "; give ids[None] for a single row" if array.ndim == 1 and shape.count(",") == 1 else ""
        raise UserError(f"{name} must be {shape} integers, but has shape {array.shape} and dtype {array.dtype}{hint}")
    if isinstance(array, jax.core.Tracer):
        return array
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise UserError(f"{name} must be in [0, {vocab_size}), not in [{array.min()}, {array.max()}]")
    return array.astype(np.int32)


def checked_key(key: Array) -> Array:
    """Returns typed PRNG keys, [] or [B], of typed or raw ones; raw keys are uint32 as from `jax.random.PRNGKey`.

    Raises:
        UserError: the key is neither.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if getattr(key, "dtype", None) == jnp.uint32:
        with contextlib.suppress(TypeError, ValueError):  # not the shape of keys
            return jax.random.wrap_key_data(key)
    raise UserError("key must be a PRNG key, such as jax.random.key(0), or an array of them")


def _by_name(params: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@functools.lru_cache(maxsize=_SHAPES_KEPT)
def _shapes(model: CharLSTM) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter by name, such as layer_0.cell.w_hh."""
    tree = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
    return {name: leaf.shape for name, leaf in _by_name(tree).items()}


def _is_finite(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        return True
    on_cpu = not isinstance(leaf, jax.Array) or {device.platform for device in leaf.devices()} == {"cpu"}
    array = np.asarray(leaf) if on_cpu else leaf  # shares memory
    # The sum is several times as fast, but may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32))) or bool(jnp.isfinite(array).all())
