"""Activations of individual hidden units over the course of a text (Karpathy, Johnson, Fei-Fei 2015).

A unit's activation is defined here as tanh(c), between -1 and 1, where c is its cell state. The unit's output h is
tanh(c) times the output gate, which hides what the cell stores for later.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError, in_short
from charjax.generation.inputs import checked_ids, checked_params
from charjax.generation.xla_decoder import XlaDecoder, XlaWeights
from charjax.host.jax_modes import in_default_modes
from charjax.model import CharLSTM, check_model
from charjax.ops.lstm.single_step import StepState

# Characters per compiled call.
CHUNK = 128
# Long text is read in groups, each split into ROWS parts that are read in parallel, each from up to BURN_IN characters
# before its start.
ROWS = 16
BURN_IN = 8 * CHUNK
GROUP = ROWS * 16 * BURN_IN


class Unit(NamedTuple):
    """The zero-based indices of a layer and of a unit within it."""

    layer: int
    unit: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.unit}"


@in_default_modes
def activations(model: CharLSTM, params: Params, ids: jax.typing.ArrayLike) -> np.ndarray:
    """Returns the activation tanh(c) of every unit after each character.

    Args:
        model: the model.
        params: its parameters.
        ids: [B, N] integer; each row is read from a zero state.

    Returns:
        [B, N, L, H] float32, for L layers of H units.

    Raises:
        UserError: ids are not [B, N] integers in [0, V), or params do not match the model.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, activations, init_params
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> activations(model, params, vocab.encode("coffee")[None]).shape
        (1, 6, 1, 8)
    """
    check_model(model)
    return _collect(model, params, ids, None, (model.hidden_layers, model.hidden_dim))


@in_default_modes
def unit_activations(
    model: CharLSTM, params: Params, ids: jax.typing.ArrayLike, units: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Returns the activations tanh(c) of the given (layer, unit) pairs, [B, N, U] float32, without storing any others.

    Raises:
        UserError: the model does not have one of the units, or ids are not [B, N] integers in [0, V).

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, unit_activations
        >>> vocab = Vocab.from_text("coffee")
        >>> model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> unit_activations(model, params, vocab.encode("coffee")[None], [(0, 3), (0, 5)]).shape
        (1, 6, 2)
    """
    check_units(model, units)
    return _collect(model, params, ids, jnp.array(units, jnp.int32).reshape(-1, 2), (len(units),))


@in_default_modes
def excerpt_activations(
    model: CharLSTM, params: Params, vocab: Vocab, text: np.ndarray, part: slice, units: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Returns the activations of the given (layer, unit) pairs after each character of an excerpt, [n, U] float32.

    Warms up the state on at most 1,024 characters before the excerpt instead of on all the preceding text.

    Raises:
        UserError: the model does not have one of the units, or ids are not in [0, V).
    """
    begin, end, _ = part.indices(len(text))
    read_from = _warm_up_from(text, begin, _newline_id(vocab))
    return unit_activations(model, params, text[None, read_from:end], units)[0, begin - read_from :]


@in_default_modes
def read_side_by_side(
    model: CharLSTM, params: Params, vocab: Vocab, text: np.ndarray, begin: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads up to GROUP characters of the text, starting at `begin`, as ROWS parts in parallel.

    Yields:
        Positions in the text [ROWS, CHUNK], -1 for characters that only warm up the state; and tanh(c) after each
        character, [ROWS, CHUNK, L, H].

    Raises:
        UserError: ids are not in [0, V).
    """
    checked_ids(text[max(begin - BURN_IN, 0) : begin + GROUP], model.vocab_size, "[N]")
    decoder, newline = XlaDecoder(model, model.dtype), _newline_id(vocab)
    weights, state = decoder.pack(on_one_device(checked_params(model, params))), decoder.init(ROWS)
    chunks = -(-min(len(text) - begin, GROUP) // (ROWS * CHUNK))
    part = max(chunks * CHUNK, BURN_IN)
    begins = (begin + part * np.arange(ROWS))[:, None]
    read_from = np.array([[_warm_up_from(text, first, newline)] for first in begins[:, 0].tolist()])
    for offset in range(0, part + BURN_IN, CHUNK):
        positions = read_from + offset + np.arange(CHUNK)[None]
        counted = (positions >= begins) & (positions < np.minimum(begins + part, len(text)))
        state, cells = _read_chunk(decoder, weights, state, text[np.minimum(positions, len(text) - 1)], None)
        if counted.any():
            yield np.where(counted, positions, -1), np.asarray(cells)


def _warm_up_from(text: np.ndarray, begin: int, newline: int) -> int:
    """Returns where to start reading so that the state at `begin` is almost as if everything before it had been read.

    This is BURN_IN to BURN_IN / 2 characters earlier, preferably right after an empty line, otherwise at the start of a
    line: if reading started inside a quotation, the closing quote would be mistaken for an opening one.

    Args:
        text: [N] ids.
        begin: the position of the first character whose activation is needed.
        newline: the id of the line break, or -1 if the vocabulary does not contain it.
    """
    if begin <= BURN_IN:
        return 0
    first = begin - BURN_IN
    breaks = text[first : first + BURN_IN // 2] == newline
    for ends in (breaks[1:] & breaks[:-1], breaks[1:]):
        if ends.any():
            return first + int(ends.argmax()) + 2
    return first


def _collect(
    model: CharLSTM, params: Params, ids: jax.typing.ArrayLike, units: Array | None, shape: tuple[int, ...]
) -> np.ndarray:
    """Reads the rows of `ids` chunk by chunk and returns activations [B, N, *shape]."""
    ids_BN = checked_ids(ids, model.vocab_size, "[B, N]")
    batch, length = ids_BN.shape
    found = np.empty((batch, length, *shape), np.float32)
    decoder = XlaDecoder(model, model.dtype)
    weights, state = decoder.pack(on_one_device(checked_params(model, params))), decoder.init(batch)
    for begin in range(0, length, CHUNK):
        chunk = ids_BN[:, begin : begin + CHUNK]
        # The last chunk is padded so that one compilation serves every length.
        padded = np.pad(chunk, ((0, 0), (0, CHUNK - chunk.shape[1])))
        state, cells = _read_chunk(decoder, weights, state, padded, units)
        found[:, begin : begin + CHUNK] = np.asarray(cells)[:, : chunk.shape[1]]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _read_chunk(
    decoder: XlaDecoder, weights: XlaWeights, state: StepState, ids: Array, units: Array | None
) -> tuple[StepState, Array]:
    """Reads ids [B, T] -> (state, tanh(c) after each character: [B, T, L, H], or [B, T, U] for units [U, 2])."""

    def read(state: StepState, ids_B: Array) -> tuple[StepState, Array]:
        state = decoder.step(weights, state, ids_B)
        cells_BLH = jnp.tanh(jnp.stack([layer.c for layer in state.carry], axis=1))
        return state, cells_BLH if units is None else cells_BLH[:, units[:, 0], units[:, 1]]

    state, cells = jax.lax.scan(read, state, ids.T)
    return state, cells.swapaxes(0, 1)


def _newline_id(vocab: Vocab) -> int:
    """Returns the id of the line break, or -1 if the vocabulary does not contain it."""
    return -1 if vocab.unknown("\n") else int(vocab.encode("\n")[0])


def check_units(model: CharLSTM, units: Sequence[tuple[int, int]]) -> None:
    """Checks that the model has the given (layer, unit) pairs.

    Raises:
        UserError: the units are not pairs, or the model does not have one of them; the message says which units exist.
    """
    check_model(model)
    found = np.array(units, object)
    are_pairs = found.ndim == 2 and found.shape[1] == 2 and all(isinstance(n, int | np.integer) for n in found.flat)
    if found.size and not are_pairs:
        raise UserError(f"units must be a list of (layer, unit) pairs, e.g. [(0, 3)], not {in_short(units)}")
    for layer, unit in units:
        if not (0 <= layer < model.hidden_layers and 0 <= unit < model.hidden_dim):
            raise UserError(
                f"there is no unit {layer}:{unit}: the model has layers 0 to {model.hidden_layers - 1}, "
                f"each with units 0 to {model.hidden_dim - 1}"
            )
