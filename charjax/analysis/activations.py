"""What single units of a network follow in a text (Karpathy, Johnson, Fei-Fei 2015).

A unit is shown by tanh(c) of its cell, what it holds in mind, between -1 and 1; h is that where its output gate lets
it pass, which hides what is kept for later.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Params
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import on_one_device
from charjax.errors import UserError
from charjax.model import Carry, CharLSTM, init_carry, step_weights
from charjax.ops.lstm.single_step import StepState, StepWeights, first_layer, start, step

# Characters per compiled call.
WINDOW = 128
# A long text is read as so many parts side by side, each from so many characters before it on: a group after another.
ROWS = 16
BURN_IN = 8 * WINDOW
GROUP = ROWS * 16 * BURN_IN


class Unit(NamedTuple):
    """A unit of a stack of layers, both numbers from 0."""

    layer: int
    unit: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.unit}"


def activations(model: CharLSTM, params: Params, ids: jax.typing.ArrayLike) -> np.ndarray:
    """The cell states tanh(c) of all units after each character.

    Args:
        model: the model.
        params: its parameters.
        ids: [B, N] integer, texts, each from its beginning.

    Returns:
        [B, N, L, H] float32, for L layers of H units.

    Raises:
        UserError: ids that are not rows of the model's characters.
    """
    return _collect(model, params, ids, None, (model.hidden_layers, model.hidden_dim))


def unit_activations(
    model: CharLSTM, params: Params, ids: jax.typing.ArrayLike, units: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The same of the given units (layer, unit) alone, so that memory is theirs: -> [B, N, U] float32.

    Raises:
        UserError: a unit that the model does not have, or ids that are not rows of its characters.
    """
    check_units(model, units)
    return _collect(model, params, ids, jnp.array(units, jnp.int32).reshape(-1, 2), (len(units),))


def excerpt_activations(
    model: CharLSTM, params: Params, vocab: Vocab, text: np.ndarray, part: slice, units: Sequence[tuple[int, int]]
) -> np.ndarray:
    """What units (layer, unit) are in the middle of a text, after each character of a part of it: -> [n, U] float32.

    Of what stands before the part up to 1,024 characters are read, in place of all.

    Raises:
        UserError: a unit that the model does not have, or ids that are not its characters.
    """
    begin, end, _ = part.indices(len(text))
    read_from = _warm_up_from(text, begin, _newline_id(vocab))
    return unit_activations(model, params, text[None, read_from:end], units)[0, begin - read_from :]


def read_side_by_side(
    model: CharLSTM, params: Params, vocab: Vocab, text: np.ndarray, begin: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the GROUP characters of a text from `begin` on, or as many as there are, as ROWS parts side by side.

    Yields:
        positions [ROWS, WINDOW] in the text, -1 for what is read to warm up alone, and tanh(c) after those characters,
        [ROWS, WINDOW, L, H].

    Raises:
        UserError: ids that are not the model's characters.
    """
    _check_ids(model, text[None, max(begin - BURN_IN, 0) : begin + GROUP])
    weights, newline = _arrange(model, on_one_device(params)), _newline_id(vocab)
    windows = -(-min(len(text) - begin, GROUP) // (ROWS * WINDOW))
    part = max(windows * WINDOW, BURN_IN)
    begins = (begin + part * np.arange(ROWS))[:, None]
    read_from = np.array([[_warm_up_from(text, int(place), newline)] for place in begins[:, 0]])
    carry = init_carry(model, ROWS)
    for offset in range(0, part + BURN_IN, WINDOW):
        positions = read_from + offset + np.arange(WINDOW)[None]
        counted = (positions >= begins) & (positions < np.minimum(begins + part, len(text)))
        carry, cells = _read_window(weights, carry, text[np.minimum(positions, len(text) - 1)], None)
        if counted.any():
            yield np.where(counted, positions, -1), np.asarray(cells)


def _warm_up_from(text: np.ndarray, begin: int, newline: int) -> int:
    """Where to start reading, for the state to be at `begin` what it would be had everything before been read.

    That is at most BURN_IN characters before, at least half of that, and after an empty line where there is one, else
    at the start of a line: a state that begins amid a quotation takes its end for the beginning of another one.

    Args:
        text: [N] ids.
        begin: the first character that counts.
        newline: the line break's id, -1 for none.
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
    """Reads texts window by window: -> [B, N, *shape]."""
    ids_BN = _check_ids(model, np.asarray(ids))
    batch, length = ids_BN.shape
    found = np.empty((batch, length, *shape), np.float32)
    weights, carry = _arrange(model, on_one_device(params)), init_carry(model, batch)
    for begin in range(0, length, WINDOW):
        window = ids_BN[:, begin : begin + WINDOW]
        # The last window is read whole and cut, so that one compilation serves every length.
        padded = np.pad(window, ((0, 0), (0, WINDOW - window.shape[1])))
        carry, cells = _read_window(weights, carry, padded, units)
        found[:, begin : begin + WINDOW] = np.asarray(cells)[:, : window.shape[1]]
    return found


_arrange = jax.jit(step_weights, static_argnums=0)


@jax.jit
def _read_window(weights: StepWeights, carry: Carry, ids: Array, units: Array | None) -> tuple[Carry, Array]:
    """Reads ids [B, T]: -> (carry, tanh(c) after each [B, T, L, H], or [B, T, U] of units [U, 2])."""

    def read(steps: StepState, ids_B: Array) -> tuple[StepState, Array]:
        steps = step(weights, steps, first_layer(weights, steps, ids_B))
        cells_BLH = jnp.tanh(jnp.stack([layer.c for layer in steps.carry], axis=1))
        return steps, cells_BLH if units is None else cells_BLH[:, units[:, 0], units[:, 1]]

    steps, cells = jax.lax.scan(read, start(weights, carry), ids.T)
    return steps.carry, cells.swapaxes(0, 1)


def _newline_id(vocab: Vocab) -> int:
    """The line break's id; -1 where the vocabulary lacks it."""
    return -1 if vocab.unknown("\n") else int(vocab.encode("\n")[0])


def check_units(model: CharLSTM, units: Sequence[tuple[int, int]]) -> None:
    """Checks that the model has units (layer, unit).

    Raises:
        UserError: it has not; the message says which it has.
    """
    for layer, unit in units:
        if not (0 <= layer < model.hidden_layers and 0 <= unit < model.hidden_dim):
            raise UserError(
                f"there is no unit {layer}:{unit}: the model has layers 0 to {model.hidden_layers - 1}, "
                f"each of units 0 to {model.hidden_dim - 1}"
            )


def _check_ids(model: CharLSTM, ids: np.ndarray) -> np.ndarray:
    if ids.ndim != 2 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise UserError(f"ids must be rows of integers, [B, N], not {ids.dtype} of shape {ids.shape}")
    if ids.size and (ids.min() < 0 or ids.max() >= model.vocab_size):
        raise UserError(f"ids must lie in [0, {model.vocab_size}), not in [{ids.min()}, {ids.max()}]")
    return ids if ids.size else ids.astype(np.int32)
