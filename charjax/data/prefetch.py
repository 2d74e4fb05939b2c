"""Loads a split onto the devices, in one piece or, if it exceeds its memory budget, in chunks that are prefetched."""

import collections
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Ids
from charjax.data.batching import SequenceLayout, Streams, check_is_array
from charjax.distributed.mesh import OVER_BATCH, REPLICATED

STREAM_SPECS: Any = Streams(OVER_BATCH, OVER_BATCH, OVER_BATCH, REPLICATED, REPLICATED)

# Chunks in memory at once: those of the previous, current and next call, and the buffer that is read into.
CHUNKS_IN_MEMORY = 4
# Positions within a chunk's sequences are int32.
MAX_CHUNK_CHARACTERS = 2**31 - 2

_log = logging.getLogger("charjax")


class Prefetcher:
    """Context manager that loads the sequences of a split onto the devices of a mesh, chunk by chunk.

    A split that fits in the budget is a single chunk, which stays on the devices. A larger one is divided into chunks
    of the same shape, so that one compiled program can use them all; while one chunk is in use, a thread reads the next
    one from the text and transfers it. Each process reads only the rows of its own devices.

    Attributes:
        windows: W, number of windows in the whole split.
        chunk_windows: C, number of windows in a chunk.
    """

    def __init__(self, ids: Ids, layout: SequenceLayout, mesh: Mesh, *, budget: int | None = None) -> None:
        """Prepares the chunks without reading anything.

        Args:
            ids: the split.
            layout: its division into sequences, whose number is a multiple of the number of devices.
            mesh: the devices.
            budget: maximum number of bytes of the split that this process may hold at once; None sets no limit. It
                always holds at least one window of every sequence.
        """
        check_is_array(ids)
        self._ids, self._layout, self._mesh = ids, layout, mesh
        self._shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), STREAM_SPECS)
        batch_size = len(layout.begins)
        # Use the rows of the process with the most devices, so that chunks have the same length in all processes.
        local = collections.Counter(device.process_index for device in mesh.devices.flat)
        rows = batch_size * max(local.values()) // mesh.size
        self.windows = layout.windows
        self.chunk_windows = min(self.windows, MAX_CHUNK_CHARACTERS // layout.seq_len)
        window_bytes = rows * layout.seq_len * ids.dtype.itemsize
        if budget is not None and self.windows * window_bytes > budget:
            self.chunk_windows = max(1, min(self.chunk_windows, budget // CHUNKS_IN_MEMORY // window_bytes))
            _log.info(
                "the text does not fit in its memory budget of %.3g MB and is loaded in %d chunks",
                budget / 1e6,
                -(-self.windows // self.chunk_windows),
            )
        self._reader = ThreadPoolExecutor(1, "charjax text")
        self._current: tuple[int, Streams] | None = None
        self._next: tuple[int, Future[Streams]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.shutdown(cancel_futures=True)

    def end_of_chunk(self, window: int) -> int:
        """Returns one past the last window of the chunk that contains `window`."""
        return min((window // self.chunk_windows + 1) * self.chunk_windows, self.windows)

    def chunk_at(self, window: int) -> Streams:
        """Returns the chunk that contains `window` and starts reading the next one.

        Raises:
            UserError: the text file has changed.
            OSError: the text file can no longer be read.
        """
        chunk = window // self.chunk_windows
        if self._current is None or self._current[0] != chunk:
            self._current = None  # frees its memory as soon as the device is done with it
            ahead, self._next = self._next, None
            streams = ahead[1].result() if ahead and ahead[0] == chunk else self._load(chunk)
            self._current = chunk, streams
            following = (chunk + 1) % -(-self.windows // self.chunk_windows)
            if following != chunk:
                self._next = following, self._reader.submit(self._load, following)
        return self._current[1]

    def abstract_chunk(self) -> Streams:
        """Returns the shapes, dtypes and shardings of the arrays in a chunk, which are the same for all chunks."""
        rows, length = len(self._layout.begins), self.chunk_windows * self._layout.seq_len + 1
        shapes: Any = ((rows, length), (rows,), (rows,), (), ())
        dtypes = (self._ids.dtype, *4 * (np.dtype(np.int32),))
        arrays = zip(shapes, dtypes, self._shardings, strict=True)
        return Streams(*(jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype, where in arrays))

    def _load(self, chunk: int) -> Streams:
        begin, windows = chunk * self.chunk_windows, self.chunk_windows
        parts = (
            lambda index: self._layout.read(self._ids, index[0], begin, windows),
            lambda index: self._layout.counted(index[0], begin, windows)[0],
            lambda index: self._layout.counted(index[0], begin, windows)[1],
            lambda _: np.int32(begin),
            lambda _: np.int32(self.windows),
        )
        # Read only the parts for the devices of this process; `jax.device_put` would need the full arrays.
        put: Any = jax.make_array_from_callback
        arrays = zip(self.abstract_chunk(), parts, strict=True)
        streams = Streams(*(put(array.shape, array.sharding, part) for array, part in arrays))
        # Wait in the reading thread; otherwise the first step on this chunk would wait for its transfer.
        return jax.block_until_ready(streams)
