"""A split on its way to the devices: whole, or where it is larger than its budget, in chunks, the next ahead of use."""

import collections
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Ids
from charjax.data.batching import StreamLayout, Streams
from charjax.distributed.mesh import OVER_STREAMS, REPLICATED

STREAM_SPECS: Any = Streams(OVER_STREAMS, OVER_STREAMS, OVER_STREAMS, REPLICATED, REPLICATED)

# What is in memory at once: the chunk of the call before, that of this one, the next, and what it is read into.
CHUNKS_IN_MEMORY = 4
# Of one stream in a chunk: positions in it are int32.
MOST_CHARACTERS = 2**31 - 2

_log = logging.getLogger("charjax")


class StreamFeed:
    """Hands out the streams of a split, on the devices of a mesh; a context manager that ends its reading ahead.

    Of a split that fits in the budget there is one chunk, which stays. Of a larger one there are several of equal
    shape, so that one compiled program takes all; while one is in use a thread reads the next from the text and puts it
    on the devices. Every process reads the rows of its own devices alone.

    Attributes:
        windows: W, windows of the whole split.
        chunk_windows: C, windows of a chunk.
    """

    def __init__(self, ids: Ids, layout: StreamLayout, mesh: Mesh, *, budget: int | None = None) -> None:
        """Reads nothing yet.

        Args:
            ids: the split.
            layout: where its streams lie; as many as the mesh's devices can share evenly.
            mesh: devices.
            budget: bytes that this process may hold of the split at once; None sets no limit. At least one window of
                every stream is held all the same.
        """
        self._ids, self._layout, self._mesh = ids, layout, mesh
        self._shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), STREAM_SPECS)
        batch_size = len(layout.begins)
        # Of the process with the most devices, so that chunks are of one length in all.
        local = collections.Counter(device.process_index for device in mesh.devices.flat)
        self._rows = batch_size * max(local.values()) // mesh.size
        self.windows = layout.windows
        self.chunk_windows = min(self.windows, MOST_CHARACTERS // layout.seq_len)
        window_bytes = self._rows * layout.seq_len * ids.dtype.itemsize
        if budget is not None and self.windows * window_bytes > budget:
            self.chunk_windows = max(1, min(self.chunk_windows, budget // CHUNKS_IN_MEMORY // window_bytes))
            _log.info(
                "the text is larger than the %.3g MB it may take: it is read in %d parts",
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
        """The window after the last of the chunk that holds a window."""
        return min((window // self.chunk_windows + 1) * self.chunk_windows, self.windows)

    def at(self, window: int) -> Streams:
        """The chunk that holds a window; begins to read the one after it.

        Raises:
            UserError: a text in a file that has changed.
            OSError: a file that can no longer be read.
        """
        chunk = window // self.chunk_windows
        if self._current is None or self._current[0] != chunk:
            self._current = None  # its memory is free as soon as the device has done with it
            ahead, self._next = self._next, None
            streams = ahead[1].result() if ahead and ahead[0] == chunk else self._load(chunk)
            self._current = chunk, streams
            following = (chunk + 1) % -(-self.windows // self.chunk_windows)
            if following != chunk:
                self._next = following, self._reader.submit(self._load, following)
        return self._current[1]

    def _load(self, chunk: int) -> Streams:
        begin, windows = chunk * self.chunk_windows, self.chunk_windows
        batch_size = len(self._layout.begins)

        def put(sharding: NamedSharding, shape: tuple[int, ...], read: Any) -> jax.Array:
            """Each device's part is read by itself; `jax.device_put` would want the whole in every process."""
            return jax.make_array_from_callback(shape, sharding, read)

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            return self._layout.read(self._ids, index[0], begin, windows)

        where = self._shardings
        length = windows * self._layout.seq_len + 1
        streams = Streams(
            put(where.ids, (batch_size, length), rows),
            put(where.first, (batch_size,), lambda index: self._layout.counted(index[0], begin, windows)[0]),
            put(where.stop, (batch_size,), lambda index: self._layout.counted(index[0], begin, windows)[1]),
            put(where.begin, (), lambda _: np.int32(begin)),
            put(where.windows, (), lambda _: np.int32(self.windows)),
        )
        # In the thread that reads ahead: else the first step that takes the chunk would wait for its transfer.
        return jax.block_until_ready(streams)
