"""A split of a text, laid out on the devices for B readers side by side.

A split of N characters has N - 1 labels: every character but the first, predicted from all before it. They are shared
out over B streams of consecutive text whose lengths differ by at most one label, and each stream is read in windows of
`seq_len`. Where a stream does not fill its last window, the rest is padding that is masked out of every loss. So each
label counts exactly once per epoch, and nothing is dropped.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charjax.array_types import Array, Ids
from charjax.errors import UserError

# Characters that are read at once.
PIECE = 1 << 18


class Streams(NamedTuple):
    """A split, or a chunk of consecutive windows of it, laid out for B readers side by side; see `make_streams`.

    Attributes:
        ids: [B, C * T + 1], C windows of T inputs and, moved by one, their labels; zeros where a stream has ended.
        first: [B] int32, the first position whose label counts; those before it only warm the state up.
        stop: [B] int32, the position after the last whose label counts.
        begin: [] int32, the window of the split that is the first here.
        windows: [] int32, the windows of the whole split, W; those here beyond it are padding.
    """

    ids: Any
    first: Any
    stop: Any
    begin: Any
    windows: Any


@dataclasses.dataclass(frozen=True)
class StreamLayout:
    """Where the B streams of a split lie in it; see `make_streams`.

    Attributes:
        begins: [B] int64, the first character that each stream reads.
        starts: [B] int64, the first whose label counts.
        ends: [B] int64, the last character, which is a label alone.
        seq_len: T, characters per window.
        windows: W, windows of the longest stream.
    """

    begins: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    seq_len: int
    windows: int

    @classmethod
    def of(cls, length: int, *, batch_size: int, seq_len: int, burn_in: int = 0) -> "StreamLayout":
        """Shares the labels of a split of `length` characters out; see `make_streams`."""
        if length < 2:
            raise UserError(f"a text of {_characters(length)} has nothing to predict; give at least 2")
        bounds = (np.arange(batch_size + 1) * (length - 1)) // batch_size
        begins = np.maximum(bounds[:-1] - burn_in, 0)
        windows = -(-int(np.max(bounds[1:] - begins)) // seq_len)
        return cls(begins, bounds[:-1], bounds[1:], seq_len, windows)

    def read(self, ids: Ids, rows: slice, begin: int, windows: int) -> np.ndarray:
        """Reads windows begin to begin + windows of some streams: [b, windows * T + 1], zeros where one has ended."""
        begins, ends = self.begins[rows] + begin * self.seq_len, self.ends[rows]
        chunk = np.zeros((len(begins), windows * self.seq_len + 1), ids.dtype)
        for row, start, last in zip(chunk, begins.tolist(), ends.tolist(), strict=True):
            stop = min(start + len(row), last + 1)
            # Piece by piece: on the way from a file each character takes about twelve bytes.
            for piece in range(start, stop, PIECE):
                end = min(piece + PIECE, stop)
                row[piece - start : end - start] = ids[piece:end]
        return chunk

    def counted(self, rows: slice, begin: int, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions in such a chunk between which labels count: `first` and `stop`, each [b] int32."""
        zero, length = self.begins[rows] + begin * self.seq_len, windows * self.seq_len
        first, stop = (np.clip(end[rows] - zero, 0, length).astype(np.int32) for end in (self.starts, self.ends))
        return first, stop


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

    Raises:
        UserError: fewer than two characters.
    """
    layout = StreamLayout.of(len(ids), batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    rows, windows = slice(0, batch_size), layout.windows
    whole = layout.read(ids, rows, 0, windows)
    return Streams(whole, *layout.counted(rows, 0, windows), np.int32(0), np.int32(windows))


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
    """Cuts window `cursor` ([] int32) of the split, which the streams hold; labels are the inputs moved by one."""
    start = (cursor - streams.begin) * seq_len
    ids = jax.lax.dynamic_slice_in_dim(streams.ids, start, seq_len + 1, axis=1)
    position = (start + jnp.arange(seq_len))[None]
    counts = (streams.first[:, None] <= position) & (position < streams.stop[:, None])
    return Window(ids[:, :-1], ids[:, 1:], counts)


def windows_held(streams: Streams, seq_len: int) -> int:
    """Windows that the streams hold, C: those of the whole split, or of a chunk of it.

    Raises:
        ValueError: the streams were made for another seq_len.
    """
    windows, remainder = divmod(streams.ids.shape[1] - 1, seq_len)
    if remainder or not windows:
        raise ValueError(f"streams of {streams.ids.shape[1]} characters are not windows of seq_len {seq_len}, plus one")
    return windows
