"""Lays out text as a batch of B sequences and cuts it into windows.

A split of N characters has N - 1 labels: every character but the first, predicted from all preceding ones. They are
divided into B sequences of consecutive text whose lengths differ by at most one, and each sequence is read in windows
of `seq_len` characters. If a sequence does not fill its last window, the rest is padding, which every loss masks out.
Each label therefore counts exactly once per epoch, and nothing is dropped.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Ids
from charjax.errors import UserError, checked_whole

# Number of characters read at once; decoding them from a file takes about twelve bytes per character.
READ_CHARACTERS = 1 << 18


class Streams(NamedTuple):
    """A batch of sequences that covers a split, or a chunk of its consecutive windows; see `make_streams`.

    Attributes:
        ids: [B, C * T + 1], C windows of T inputs and, shifted by one, their labels; zeros after the end of a sequence.
        first: [B] int32, first position whose label counts; earlier positions are burn-in.
        stop: [B] int32, one past the last position whose label counts.
        begin: [] int32, index of the chunk's first window in the split.
        windows: [] int32, W, number of windows in the whole split; windows in the chunk beyond it are padding.
    """

    ids: Any
    first: Any
    stop: Any
    begin: Any
    windows: Any


@dataclasses.dataclass(frozen=True)
class SequenceLayout:
    """Positions of the B sequences in a split; see `make_streams`.

    Attributes:
        begins: [B] int64, first character that each sequence reads.
        starts: [B] int64, first character whose label counts.
        ends: [B] int64, last character, which is only used as a label.
        seq_len: T, characters per window.
        windows: W, number of windows in the longest sequence.
    """

    begins: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    seq_len: int
    windows: int

    @classmethod
    def of(cls, length: int, *, batch_size: int, seq_len: int, burn_in: int = 0) -> "SequenceLayout":
        """Lays out a split of `length` characters as sequences.

        Arguments and errors are those of `make_streams`.
        """
        batch_size, seq_len = checked_whole("batch_size", batch_size), checked_whole("seq_len", seq_len)
        burn_in = checked_whole("burn_in", burn_in, least=0)
        if length < 2:
            raise UserError(f"text of {_characters(length)} leaves nothing to predict; it needs at least 2")
        bounds = (np.arange(batch_size + 1) * (length - 1)) // batch_size
        begins = np.maximum(bounds[:-1] - burn_in, 0)
        windows = -(-int(np.max(bounds[1:] - begins)) // seq_len)
        return cls(begins, bounds[:-1], bounds[1:], seq_len, windows)

    def read(self, ids: Ids, rows: slice, begin: int, windows: int) -> np.ndarray:
        """Reads windows [begin, begin + windows) of some rows as [b, windows * T + 1], zero-padded at the end."""
        begins, ends = self.begins[rows] + begin * self.seq_len, self.ends[rows]
        chunk = np.zeros((len(begins), windows * self.seq_len + 1), ids.dtype)
        for row, start, last in zip(chunk, begins.tolist(), ends.tolist(), strict=True):
            stop = min(start + len(row), last + 1)
            for left in range(start, stop, READ_CHARACTERS):
                right = min(left + READ_CHARACTERS, stop)
                row[left - start : right - start] = ids[left:right]
        return chunk

    def counted(self, rows: slice, begin: int, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns `first` and `stop`, each [b] int32, for the chunk that `read` returns."""
        zero, length = self.begins[rows] + begin * self.seq_len, windows * self.seq_len
        first, stop = (np.clip(end[rows] - zero, 0, length).astype(np.int32) for end in (self.starts, self.ends))
        return first, stop


def make_streams(ids: np.ndarray, *, batch_size: int, seq_len: int, burn_in: int = 0) -> Streams:
    """Divides text into a batch of B sequences of consecutive characters.

    Args:
        ids: [N] integer, N >= 2.
        batch_size: B; sequences in excess of the N - 1 labels stay empty.
        seq_len: T, characters per window.
        burn_in: number of characters that each sequence also reads before its first label, or as many as there are.
            They set up the state and do not count, so that B sequences give the same loss as a single one.

    Returns:
        NumPy arrays: position t of sequence b has input ids[b, t] and label ids[b, t + 1], which counts where
        first[b] <= t < stop[b].

    Raises:
        UserError: ids are not an integer array [N], there are fewer than two of them, or an argument is out of range.

    Examples:
        >>> import numpy as np
        >>> from charjax import make_streams
        >>> streams = make_streams(np.arange(9, dtype=np.uint8), batch_size=2, seq_len=2)
        >>> streams.ids
        array([[0, 1, 2, 3, 4],
               [4, 5, 6, 7, 8]], dtype=uint8)
        >>> int(streams.windows)
        2
    """
    check_is_array(ids)
    layout = SequenceLayout.of(len(ids), batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    rows, windows = slice(0, batch_size), layout.windows
    whole = layout.read(ids, rows, 0, windows)
    return Streams(whole, *layout.counted(rows, 0, windows), np.int32(0), np.int32(windows))


def check_is_array(ids: Ids) -> None:
    """Checks that ids [N] are an integer array or are in a file; raises UserError otherwise."""
    shape = getattr(ids, "shape", (0,) if hasattr(ids, "__len__") else ())  # ids in a file have no shape
    dtype = getattr(ids, "dtype", None)
    if len(shape) != 1 or dtype is None or not np.issubdtype(dtype, np.integer):
        found = type(ids).__name__ if dtype is None else f"{type(ids).__name__} of shape {shape} and dtype {dtype}"
        raise UserError(f"ids must be an array [N] of integers, e.g. corpus.train, not {found}")


def _characters(number: int) -> str:
    return f"{number} character{'' if number == 1 else 's'}"


def check_fits(num_characters: int, *, batch_size: int, seq_len: int) -> None:
    """Checks that the training text fills at least one window of every sequence.

    Raises:
        UserError: the text is too short; the message names the largest sizes that would fit.
    """
    labels = num_characters - 1
    if labels < 1:
        text = f"training text of {_characters(num_characters)}"
        raise UserError(f"{text} leaves nothing to predict; it needs at least 2")
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
    """One window of every sequence: `inputs` and `labels` [B, T], and `counts` [B, T] bool, True for counted labels."""

    inputs: Array
    labels: Array
    counts: Array


def cut_window(streams: Streams, cursor: Array, seq_len: int) -> Window:
    """Cuts window `cursor` ([] int32, counted from the start of the split) from the chunk that contains it."""
    start = (cursor - streams.begin) * seq_len
    ids = jax.lax.dynamic_slice_in_dim(streams.ids, start, seq_len + 1, axis=1)
    position = (start + jnp.arange(seq_len))[None]
    counts = (streams.first[:, None] <= position) & (position < streams.stop[:, None])
    return Window(ids[:, :-1], ids[:, 1:], counts)


def windows_held(streams: Streams, seq_len: int) -> int:
    """Returns C, the number of windows in these streams, which may be a chunk of a split.

    Raises:
        ValueError: the streams were made for a different seq_len.
    """
    windows, remainder = divmod(streams.ids.shape[1] - 1, seq_len)
    if remainder or not windows:
        raise ValueError(
            f"streams of {streams.ids.shape[1]} characters are not windows of seq_len {seq_len} plus one character"
        )
    return windows
