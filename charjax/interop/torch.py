"""Converts parameters to and from PyTorch, whose LSTM has the same gates in the same order (i, f, g, o).

This torch model, which takes one-hot inputs, corresponds to a `CharLSTM`::

    class TorchCharLSTM(torch.nn.Module):
        def __init__(self, vocab_size, hidden_dim, hidden_layers):
            super().__init__()
            self.lstm = torch.nn.LSTM(vocab_size, hidden_dim, hidden_layers, batch_first=True)
            self.head = torch.nn.Linear(hidden_dim, vocab_size)

        def forward(self, one_hot, carry=None):  # [B, T, V] float; (h, c), each [L, B, H]
            y, carry = self.lstm(one_hot, carry)
            return self.head(y), carry

    torch_model.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(params).items()})
    params = from_torch(torch_model.state_dict())

This module does not import torch, so torch need not be installed.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from charjax.errors import UserError, in_short
from charjax.host.jax_modes import in_default_modes

Params = dict[str, Any]  # flax's nested dict of arrays
Float32 = NDArray[np.float32]

_LAYER_KEYS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_LSTM_KEY = re.compile(r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?")


def to_torch(params: Params) -> dict[str, Float32]:
    """Converts a model's parameters to a state_dict of NumPy arrays for the torch model above.

    Args:
        params: the parameters of a `CharLSTM`, float: for each layer, `w_ih` ([V, 4H] in layer 0, otherwise [H, 4H]),
            `w_hh` [H, 4H] and `bias` [4H]; for the head, `kernel` [H, V] and `bias` [V].

    Returns:
        `lstm.weight_ih_l{n}` [4H, V or H], `lstm.weight_hh_l{n}` [4H, H], `lstm.bias_ih_l{n}` [4H] with the
        whole bias, `lstm.bias_hh_l{n}` [4H] with zeros, `head.weight` [V, H] and `head.bias` [V], in torch's
        order; C-contiguous, writable float32 copies.

    Raises:
        UserError: the parameters are not those of a CharLSTM; the message names the part at fault.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, init_params
        >>> from charjax.interop import to_torch
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1, implementation="scan")
        >>> state_dict = to_torch(init_params(jax.random.key(0), model))
        >>> state_dict["lstm.weight_hh_l0"].shape
        (32, 8)
    """
    _check_is_mapping(params, "params")
    layers = max(1, sum(name.startswith("layer_") for name in params))
    _check_keys(params, [*(f"layer_{n}" for n in range(layers)), "head"], "params")
    state = {}
    for n in range(layers):
        _check_keys(params[f"layer_{n}"], ["cell"], f"layer_{n}")
        cell = params[f"layer_{n}"]["cell"]
        _check_keys(cell, ["w_ih", "w_hh", "bias"], f"layer_{n}/cell")
        bias = _copy(cell["bias"])
        state[f"lstm.weight_ih_l{n}"] = _transposed(cell["w_ih"])
        state[f"lstm.weight_hh_l{n}"] = _transposed(cell["w_hh"])
        state[f"lstm.bias_ih_l{n}"] = bias
        state[f"lstm.bias_hh_l{n}"] = np.zeros_like(bias)
    _check_keys(params["head"], ["kernel", "bias"], "head")
    state["head.weight"] = _transposed(params["head"]["kernel"])
    state["head.bias"] = _copy(params["head"]["bias"])
    return state


@in_default_modes
def from_torch(state_dict: Mapping[str, Any]) -> Params:
    """Converts the state_dict of the torch model above to the parameters of a `CharLSTM`.

    The names must be exactly those that `to_torch` returns. If the model uses other attribute names, or is wrapped in
    another module, rename the keys first.

    Args:
        state_dict: torch tensors (on any device, in any float dtype, with or without requires_grad) or NumPy arrays.

    Returns:
        Parameters in the form that `to_torch` takes, as float32 JAX arrays that share no memory with the tensors. The
        `bias` of a layer is the sum of the two torch biases.

    Raises:
        UserError: a name is missing or unknown, the LSTM is bidirectional or has projections, a shape is wrong, or a
            dtype is not float; the message names the key.

    Examples:
        >>> import numpy as np
        >>> from charjax.interop import from_torch
        >>> shapes = {"weight_ih": (32, 5), "weight_hh": (32, 8), "bias_ih": (32,), "bias_hh": (32,)}
        >>> state_dict = {f"lstm.{name}_l0": np.ones(shape) for name, shape in shapes.items()}
        >>> params = from_torch(state_dict | {"head.weight": np.ones((5, 8)), "head.bias": np.ones(5)})
        >>> params["layer_0"]["cell"]["w_hh"].shape
        (8, 32)
    """
    _check_is_mapping(state_dict, "the state_dict")
    layers = sum(re.fullmatch(r"lstm\.weight_ih_l\d+", key) is not None for key in state_dict)
    _refuse_other_lstms(state_dict)
    lstm_keys = [f"lstm.{name}_l{n}" for n in range(max(1, layers)) for name in _LAYER_KEYS]
    _check_keys(state_dict, [*lstm_keys, "head.weight", "head.bias"], "the state_dict")
    arrays = {key: _to_numpy(key, tensor) for key, tensor in state_dict.items()}
    _check_shapes(arrays, layers)
    params: Params = {
        f"layer_{n}": {
            "cell": {
                "w_ih": jnp.array(arrays[f"lstm.weight_ih_l{n}"].T),
                "w_hh": jnp.array(arrays[f"lstm.weight_hh_l{n}"].T),
                "bias": jnp.array(arrays[f"lstm.bias_ih_l{n}"] + arrays[f"lstm.bias_hh_l{n}"]),
            }
        }
        for n in range(layers)
    }
    params["head"] = {"kernel": jnp.array(arrays["head.weight"].T), "bias": jnp.array(arrays["head.bias"])}
    return params


def standard_names(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """Finds the one LSTM and the one linear layer of a model.

    Args:
        state_dict: as for `from_torch`, with any names that end like those in torch.

    Returns:
        The names of their arrays -> those that `from_torch` expects.

    Raises:
        UserError: there is not exactly one of each.
    """
    _check_is_mapping(state_dict, "the state_dict")
    first = "weight_ih_l0"
    prefixes = [key.removesuffix(first) for key in state_dict if key.endswith(first)]
    if len(prefixes) != 1:
        raise UserError(
            f"expected the weights of a single LSTM, with one key that ends in {first}, but found {len(prefixes)}"
        )
    ours = {key: key.removeprefix(prefixes[0]) for key in state_dict if key.startswith(prefixes[0])}
    names = {key: f"lstm.{name}" for key, name in ours.items() if _LSTM_KEY.fullmatch(name)}
    biases = {key: f"{key.removesuffix('weight')}bias" for key in _matrices(state_dict, names)}
    linear = [key for key, bias in biases.items() if bias in state_dict and bias not in names]
    if len(linear) != 1:
        found = f"{len(linear)}: {in_short(linear)}" if linear else "none"
        raise UserError(
            "the weights must have one linear layer from the H hidden units to the V characters, which is a weight "
            f"[V, H] and a bias [V]; found {found}"
        )
    return names | {linear[0]: "head.weight", biases[linear[0]]: "head.bias"}


def with_standard_names(state_dict: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Renames arrays for `from_torch`, and multiplies an embedding into the input weights of layer 0.

    Args:
        state_dict: arrays by name.
        names: new names, as found by `standard_names`; arrays that belong to no layer keep theirs.

    Raises:
        UserError: the shape of the embedding does not match.
    """
    renamed = {names.get(key, key): array for key, array in state_dict.items()}
    for key in _matrices(state_dict, names):
        _multiply_in(renamed, key)
    return renamed


def _matrices(state_dict: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Returns the keys of matrices that have no new name."""
    return [
        key
        for key, array in state_dict.items()
        if key not in names and key.endswith("weight") and len(np.shape(array)) == 2
    ]


def _multiply_in(arrays: dict[str, Any], embedding: str) -> None:
    """Replaces an embedding [V, E] and layer 0's input weights [4H, E] with input weights for one-hot rows."""
    first = "lstm.weight_ih_l0"
    shapes = [np.shape(arrays.get(name, ())) for name in (embedding, first, "head.weight")]
    vocab, hidden = shapes[2] if len(shapes[2]) == 2 else (0, 0)
    width = shapes[0][1]
    if shapes != [(vocab, width), (4 * hidden, width), (vocab, hidden)]:
        found = ", ".join(str(list(shape)) for shape in shapes)
        raise UserError(f"{embedding!r}, {first!r} and 'head.weight' must be [V, E], [4H, E] and [V, H], not {found}")
    table, weights = (_to_numpy(name, arrays.pop(name)) for name in (embedding, first))
    arrays[first] = weights @ table.T


def _check_is_mapping(tree: Any, where: str) -> None:
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} must be a mapping of names to arrays, not {type(tree).__name__}")


def _check_keys(tree: Any, expected: list[str], where: str) -> None:
    _check_is_mapping(tree, where)
    for key in expected:
        if key not in tree:
            raise UserError(f"{where} is missing {key!r}")
    for key in tree:
        if key not in expected:
            raise UserError(f"{where} must not have {key!r}, which a CharLSTM does not use; rename or remove it")


def _refuse_other_lstms(state_dict: Mapping[str, Any]) -> None:
    for key in state_dict:
        if key.endswith("_reverse"):
            raise UserError(f"{key!r} belongs to a bidirectional LSTM, but a CharLSTM only reads forward")
        if key.startswith("lstm.weight_hr"):
            raise UserError(f"{key!r} belongs to an LSTM with projections (proj_size), which a CharLSTM does not have")


def _check_shapes(arrays: Mapping[str, Float32], layers: int) -> None:
    """Checks the shape of every array, taking H from the columns of layer 0's weight_hh and V from head.bias."""
    for key in ("lstm.weight_hh_l0", "head.bias"):
        if not arrays[key].shape:
            raise UserError(f"{key!r} must be an array, not a scalar")
    hidden, vocab = arrays["lstm.weight_hh_l0"].shape[-1], arrays["head.bias"].shape[0]
    expected: dict[str, tuple[int, ...]] = {"head.weight": (vocab, hidden), "head.bias": (vocab,)}
    for n in range(layers):
        expected[f"lstm.weight_ih_l{n}"] = (4 * hidden, hidden if n else vocab)
        expected[f"lstm.weight_hh_l{n}"] = (4 * hidden, hidden)
        expected[f"lstm.bias_ih_l{n}"] = expected[f"lstm.bias_hh_l{n}"] = (4 * hidden,)
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise UserError(
                f"{key!r} must have shape {list(shape)} for {hidden} hidden units and {vocab} characters,"
                f" not {list(arrays[key].shape)}"
            )


def _to_numpy(key: str, value: Any) -> Float32:
    if hasattr(value, "detach"):
        if not value.is_floating_point():
            raise UserError(f"{key!r} must have a float dtype, not {value.dtype}")
        # NumPy has no bfloat16, so torch converts it to float32 first.
        return value.detach().cpu().float().numpy()
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{key!r} must have a float dtype, not {array.dtype}")
    return array.astype(np.float32)


def _copy(array: Any) -> Float32:
    return np.array(array, dtype=np.float32, order="C")


def _transposed(array: Any) -> Float32:
    return _copy(np.asarray(array).T)
