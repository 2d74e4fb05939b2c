"""What every peer computes: one set of weights, one context, and the bytes and operations that a step takes."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import VOCAB, initial_params

CONTEXT, FORCED = 16, 32
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
# Fresh weights know nothing and draw all characters alike; with larger logits, a peer that draws wrongly is seen.
HEAD_SCALE = 6.0


def parameters(sizes: dict[str, Any]) -> Any:
    """Charjax's tree of NumPy arrays, the same in every process."""
    params = initial_params(sizes)
    return {**params, "head": {**params["head"], "kernel": HEAD_SCALE * params["head"]["kernel"]}}


def text(streams: int, length: int) -> np.ndarray:
    """[streams, length] int32, the beginning of Shakespeare, another piece for every stream."""
    content = (Path(__file__).parents[2] / "data_files" / "shakespeare.txt").read_bytes()
    return np.resize(np.frombuffer(content, np.uint8), (streams, length)).astype(np.int32)


def products(sizes: dict[str, Any]) -> int:
    """Weights that a step multiplies with: recurrent and input kernels and the head; layer 0 has a table for input."""
    hidden, layers = sizes["hidden_dim"], sizes["hidden_layers"]
    return 4 * hidden**2 * (2 * layers - 1) + hidden * VOCAB


def step_bytes(sizes: dict[str, Any], dtype: str) -> int:
    """Bytes that a step of all streams must read at least: each weight once, and the table's rows that can differ."""
    rows = min(sizes["streams"], VOCAB) * 4 * sizes["hidden_dim"]
    return BYTES[dtype] * (products(sizes) + rows)


def step_flops(sizes: dict[str, Any]) -> int:
    """Of the matrix products of one step of all streams."""
    return 2 * products(sizes) * sizes["streams"]
