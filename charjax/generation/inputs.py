"""Validates what callers pass along with a model (parameters, vocabulary, ids), since compiled code does no checks."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Ids, Params
from charjax.data.text_file import FileIds
from charjax.data.vocab import Vocab
from charjax.errors import UserError, check_type
from charjax.model import CharLSTM, check_model, init_params

# The number of models whose parameter shapes are cached.
_SHAPES_KEPT = 16


def checked_params(model: CharLSTM, params: Params) -> Params:
    """Checks the parameters against what the model needs and returns them in float32.

    For arrays that are being traced, in a caller's `jit` or `vmap`, only the shapes are checked.

    Raises:
        UserError: `model` is not a model, names or shapes differ, or values are not finite floating-point numbers.
    """
    check_shapes(model, params)
    for name, leaf in _by_name(params).items():
        # A bias of -inf excludes a character.
        if not (_is_finite(leaf) or (name == "head.bias" and bool((leaf < jnp.inf).all()))):
            raise UserError(f"parameter {name} has values that are not finite; train the model again")
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.float32 else jnp.asarray(leaf, jnp.float32), params)


def check_shapes(model: CharLSTM, params: Params) -> None:
    """Checks the names, shapes and dtypes of the parameters against the model; raises errors like `checked_params`."""
    check_model(model)
    if isinstance(params, Mapping) and set(params) == {"params"}:
        raise UserError('params must be the parameters themselves; pass variables["params"] instead of variables')
    found, expected = _by_name(params), _shapes(model)
    for name in expected:
        if name not in found:
            raise UserError(f"params has no {name}, which this model needs; see init_params")
    for name, leaf in found.items():
        if name not in expected:
            raise UserError(f"params has {name}, which this model does not need; see init_params")
        if np.shape(leaf) != expected[name]:
            raise UserError(f"params has {name} with shape {np.shape(leaf)}, but this model needs {expected[name]}")
        try:
            dtype = jnp.result_type(leaf)
        except TypeError:  # e.g. for objects, or floats with non-native byte order
            raise UserError(
                f"params has {name} with dtype {leaf.dtype}, which JAX does not support; use .astype(np.float32)"
            ) from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"params has {name} with dtype {dtype}, which is not floating-point")


def check_vocab(model: CharLSTM, vocab: Vocab) -> None:
    """Checks that the vocabulary's size matches the model.

    Raises:
        UserError: the sizes differ, or an argument has the wrong type.
    """
    check_model(model)
    check_type("vocab", vocab, Vocab, "use the one that load_model returns, or corpus.vocab")
    if vocab.size != model.vocab_size:
        raise UserError(
            f"the vocabulary has {vocab.size} characters, but the model's vocab_size is {model.vocab_size}; "
            "use the vocabulary that the model was trained with"
        )


def checked_text(ids: Ids, vocab_size: int, name: str = "ids") -> Ids:
    """Checks the text's ids [N] and returns them: `FileIds` as they are, anything else as a NumPy array.

    Raises:
        UserError: the ids are not [N] integers in [0, V), or the file's vocabulary is larger than V.
    """
    if not isinstance(ids, FileIds):
        return checked_ids(ids, vocab_size, "[N]", name, dtype=None)
    if ids.file.vocab.size > vocab_size:
        raise UserError(f"{name} must be in [0, {vocab_size}), but the text's vocabulary has {ids.file.vocab.size} ids")
    return ids


def checked_ids(
    ids: Any, vocab_size: int, shape: str, name: str = "ids", *, dtype: jax.typing.DTypeLike | None = np.int32
) -> Any:
    """Checks ids and returns them as a NumPy array; an array that is being traced is returned unchanged.

    Args:
        ids: the ids.
        vocab_size: V.
        shape: the dimensions that they must have, e.g. "[B, P]".
        name: the name to use in error messages.
        dtype: the dtype to convert them to; None leaves it unchanged.

    Raises:
        UserError: the ids have the wrong number of dimensions, are not integers, or are not in [0, V).
    """
    try:
        array = ids if isinstance(ids, jax.core.Tracer) else np.asarray(ids)
    except (ValueError, TypeError):  # lists of different lengths, or PRNG keys
        raise UserError(f"{name} must be {shape} integers, with all rows of the same length") from None
    if array.dtype.kind in "OSU":
        found = array.dtype if ids is array else type(ids).__name__
        raise UserError(f"{name} must be {shape} integers, not {found}; vocab.encode converts text to ids [N]")
    if array.ndim != shape.count(",") + 1 or (array.size and not jnp.issubdtype(array.dtype, jnp.integer)):
        hint = "; pass ids[None] for a single row" if array.ndim == 1 and shape.count(",") == 1 else ""
        raise UserError(f"{name} must be {shape} integers, but has shape {array.shape} and dtype {array.dtype}{hint}")
    if isinstance(array, jax.core.Tracer):
        return array
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        found = f"the values range from {array.min()} to {array.max()}"
        raise UserError(f"{name} must be in [0, {vocab_size}), but {found}")
    return array if dtype is None else array.astype(dtype)


def _by_name(params: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@functools.lru_cache(maxsize=_SHAPES_KEPT)
def _shapes(model: CharLSTM) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter by name, e.g. layer_0.cell.w_hh."""
    tree = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
    return {name: leaf.shape for name, leaf in _by_name(tree).items()}


def _is_finite(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        return True
    on_cpu = not isinstance(leaf, jax.Array) or {device.platform for device in leaf.devices()} == {"cpu"}
    array = np.asarray(leaf) if on_cpu else leaf  # shares memory
    # Summing is several times faster than checking every element, but may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32))) or bool(jnp.isfinite(array).all())
