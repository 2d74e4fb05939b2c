"""A split of a text, laid out on the devices for B readers side by side.

A split of N characters has N - 1 labels: every character but the first, predicted from all before it. They are shared
out over B streams of consecutive text whose lengths differ by at most one label, and each stream is read in windows of
`seq_len`. Where a stream does not fill its last window, the rest is padding that is masked out of every loss. So each
label counts exactly once per epoch, and nothing is dropped.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.errors import UserError
from charjax.types import Array


class Streams(NamedTuple):
    """A split laid out for B readers side by side; see `make_streams`.

    Attributes:
        ids: [B, W * T + 1], W windows of T inputs and, moved by one, their labels; zeros where a stream has ended.
        first: [B] int32, the first position whose label counts; those before it only warm the state up.
        stop: [B] int32, the position after the last whose label counts.
    """

    ids: Any
    first: Any
    stop: Any


def make_streams(ids: np.ndarray, *, batch_size: int, seq_len: int, burn_in: int = 0) -> Streams:
    """Lays a split out as B streams; the module's docstring says how.

    Args:
        ids: [N] integer, N >= 2.
        batch_size: B; streams beyond the N - 1 labels stay empty.
        seq_len: T, characters per window.
        burn_in: characters that each stream begins early, as far as the text goes back: they are read to warm the
            state up and not counted, so that B streams measure what a single one would.

    Returns:
        NumPy arrays; position t of stream b has the input ids[b, t] and the label ids[b, t + 1], which counts where
        first[b] <= t < stop[b].
    """
    if len(ids) < 2:
        raise UserError(f"a text of {_characters(len(ids))} has nothing to predict; give at least 2")
    starts = (np.arange(batch_size + 1) * (len(ids) - 1)) // batch_size
    begins = np.maximum(starts[:-1] - burn_in, 0)
    windows = -(-int(np.max(starts[1:] - begins)) // seq_len)
    streams = np.zeros((batch_size, windows * seq_len + 1), ids.dtype)
    for row, begin, end in zip(streams, begins, starts[1:], strict=True):
        row[: end - begin + 1] = ids[begin : end + 1]
    return Streams(streams, (starts[:-1] - begins).astype(np.int32), (starts[1:] - begins).astype(np.int32))


def _characters(number: int) -> str:
    return f"{number} character{'' if number == 1 else 's'}"


def check_fits(num_characters: int, *, batch_size: int, seq_len: int) -> None:
    """Checks that the training text fills at least one window of every stream.

    Raises:
        UserError: it does not; the message says what would fit.
    """
    labels = num_characters - 1
    if labels < 1:
        raise UserError(f"a training text of {_characters(num_characters)} has nothing to predict; give at least 2")
    if labels >= batch_size * seq_len:
        return
    fitting = []
    if labels >= seq_len:
        fitting.append(f"--batch-size {labels // seq_len}")
    if labels >= batch_size:
        fitting.append(f"--seq-len {labels // batch_size}")
    advice = " or ".join(fitting) or f"--batch-size 1 --seq-len {labels}"
    raise UserError(
        f"the training text has {num_characters} characters, but batch_size {batch_size} x seq_len {seq_len} needs "
        f"{batch_size * seq_len + 1}; the largest that fit: {advice}"
    )


class Window(NamedTuple):
    """One window of every stream: `inputs` and `labels` [B, T], and which labels count, `counts` [B, T] bool."""

    inputs: Array
    labels: Array
    counts: Array


def cut_window(streams: Streams, cursor: Array, seq_len: int) -> Window:
    """Cuts window `cursor` ([] int32) of `seq_len` characters; labels are the inputs moved by one."""
    start = cursor * seq_len
    ids = jax.lax.dynamic_slice_in_dim(streams.ids, start, seq_len + 1, axis=1)
    position = (start + jnp.arange(seq_len))[None]
    counts = (streams.first[:, None] <= position) & (position < streams.stop[:, None])
    return Window(ids[:, :-1], ids[:, 1:], counts)


def num_windows(streams: Streams, seq_len: int) -> int:
    """Windows per pass over the streams.

    Raises:
        ValueError: the streams were made for another seq_len.
    """
    windows, remainder = divmod(streams.ids.shape[1] - 1, seq_len)
    if remainder or not windows:
        raise ValueError(f"streams of {streams.ids.shape[1]} characters are not windows of seq_len {seq_len}, plus one")
    return windows
