"""The problem that every peer solves: text, starting parameters, and the bytes and operations of a step.

A training step is truncated BPTT over [B, T] characters: one-hot input, L LSTM layers of H units, a linear head, mean
cross-entropy, gradients clipped to a global norm of 1, Adam at 1e-3.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, SEQ_LEN, WINDOWS, LEARNING_RATE = 128, 100, 8, 1e-3
# Characters that generation reads first, and those whose logits are compared.
CONTEXT, FORCED = 16, 32
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
# Fresh weights make all characters equally likely; larger logits show a peer that samples wrongly.
HEAD_SCALE = 6.0
TEXT = Path(__file__).parents[2] / "data_files" / "shakespeare.txt"

Sizes = dict[str, Any]
"""hidden_dim, hidden_layers and batch_size or streams; seq_len and vocab_size where they are not the usual ones."""


def training_ids(sizes: Sizes) -> np.ndarray:
    """Returns the ids of WINDOWS windows of every sequence: Shakespeare, or random ids for another vocabulary."""
    vocab_size = sizes.get("vocab_size", VOCAB)
    count = sizes["batch_size"] * WINDOWS * sizes.get("seq_len", SEQ_LEN) + 1
    if vocab_size == VOCAB:
        return np.resize(np.frombuffer(TEXT.read_bytes(), np.uint8), count)
    ids = np.random.default_rng(0).integers(0, vocab_size, count)
    return ids.astype(np.uint8 if vocab_size <= 256 else np.uint16)


def windows(batch_size: int) -> np.ndarray:
    """Returns [WINDOWS, B, T + 1] int32, the windows that charjax cuts from `training_ids`."""
    ids = training_ids({"batch_size": batch_size})
    starts = SEQ_LEN * (np.arange(WINDOWS)[:, None] + WINDOWS * np.arange(batch_size))
    return ids[starts[..., None] + np.arange(SEQ_LEN + 1)].astype(np.int32)


def text(streams: int, length: int) -> np.ndarray:
    """Returns [streams, length] int32, the beginning of Shakespeare, a different piece for each text."""
    return np.resize(np.frombuffer(TEXT.read_bytes(), np.uint8), (streams, length)).astype(np.int32)


def initial_params(sizes: Sizes) -> Any:
    """Returns the parameters, as NumPy arrays, that charjax and PyTorch start from."""
    return _initial_params(sizes["hidden_dim"], sizes["hidden_layers"], sizes.get("vocab_size", VOCAB))


@functools.cache
def _initial_params(hidden_dim: int, hidden_layers: int, vocab_size: int) -> Any:
    # The process that only starts workers must not hold a device.
    import jax  # noqa: PLC0415

    from charjax import CharLSTM, init_params  # noqa: PLC0415

    model = CharLSTM(vocab_size, hidden_dim=hidden_dim, hidden_layers=hidden_layers, implementation="scan")
    return jax.device_get(jax.jit(functools.partial(init_params, model=model))(jax.random.key(0)))


def generation_params(sizes: Sizes) -> Any:
    """Returns the parameters, as NumPy arrays, that all peers generate with."""
    params = initial_params(sizes)
    return {**params, "head": {**params["head"], "kernel": HEAD_SCALE * params["head"]["kernel"]}}


def training_flops(sizes: Sizes) -> float:
    """Returns the operations of the matrix products of one training step.

    Layer 0 looks rows up instead of multiplying its input; training takes three times the forward pass.
    """
    return 3.0 * 2 * multiplied_weights(sizes) * sizes["batch_size"] * SEQ_LEN


def multiplied_weights(sizes: Sizes) -> int:
    """Counts the weights that a step multiplies with: recurrent and input kernels and the head, no look-up table."""
    hidden, layers = sizes["hidden_dim"], sizes["hidden_layers"]
    return int(4 * hidden**2 * (2 * layers - 1) + hidden * VOCAB)


def step_bytes(sizes: Sizes, dtype: str) -> int:
    """Returns the bytes that one step of all texts must read: each weight once, and the table's distinct rows."""
    rows = min(sizes["streams"], VOCAB) * 4 * sizes["hidden_dim"]
    return int(BYTES[dtype] * (multiplied_weights(sizes) + rows))


def step_flops(sizes: Sizes) -> int:
    """Returns the operations of the matrix products of one step of all texts."""
    return int(2 * multiplied_weights(sizes) * sizes["streams"])
