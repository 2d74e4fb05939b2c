"""The loss of a finished model of the speedrun, charjax's or PyTorch's, measured in two ways by the same program."""

import math
from pathlib import Path
from typing import Any

import numpy as np

# Of nanoGPT's `estimate_loss`, with its setting for this text.
BATCHES, BATCH_SIZE, BLOCK_SIZE = 200, 64, 256


def losses(folder: str, text: str, dtype: str) -> dict[str, float]:
    """Returns the losses on the last tenth of a text of the model in a run folder or in params.npz.

    Args:
        folder: a run of `charjax train` or of `torch_speedrun`.
        text: path of the text.
        dtype: format of the matrix products for PyTorch's model, that of its training.

    Returns:
        "carried": the exact loss, the state carried through the text. "windows": nanoGPT's way.
    """
    from charjax.distributed.mesh import use_all_cores

    use_all_cores()
    from charjax import CharLSTM, Corpus, evaluate, load_model
    from charjax.interop import from_torch

    corpus = Corpus.from_file(text)
    if (Path(folder) / "params.npz").exists():
        params = from_torch(dict(np.load(Path(folder) / "params.npz")))
        hidden, vocab = params["head"]["kernel"].shape
        model = CharLSTM(vocab, hidden_dim=hidden, hidden_layers=len(params) - 1, dtype=dtype)
    else:
        model, params, _ = load_model(folder)
    validation = np.asarray(corpus.validation)
    return {"carried": evaluate(model, params, validation), "windows": window_loss(model, params, validation)}


def window_loss(model: Any, params: Any, ids: np.ndarray, batches: int = BATCHES, seed: int = 0) -> float:
    """Returns the mean loss of `batches` x 64 windows of 256 characters, each from a zero state.

    As nanoGPT's `estimate_loss`: windows begin anywhere, equally likely, and every character of a window counts, the
    first ones with hardly any context. The windows depend on the seed only, so that all models see the same.
    """
    import jax

    from charjax import make_eval_step, make_mesh, put_streams
    from charjax.data.batching import Streams
    from charjax.distributed.mesh import put_replicated

    mesh = make_mesh(jax.devices()[: math.gcd(jax.device_count(), BATCH_SIZE)])
    eval_step = make_eval_step(model, seq_len=BLOCK_SIZE, mesh=mesh)
    params, rng = put_replicated(params, mesh), np.random.default_rng(seed)
    first, stop = np.zeros(BATCH_SIZE, np.int32), np.full(BATCH_SIZE, BLOCK_SIZE, np.int32)
    nats = 0.0
    for _ in range(batches):
        begins = rng.integers(0, len(ids) - BLOCK_SIZE, BATCH_SIZE)
        windows = ids[begins[:, None] + np.arange(BLOCK_SIZE + 1)]
        streams = put_streams(Streams(windows, first, stop, np.int32(0), np.int32(1)), mesh)
        nats += float(eval_step(params, streams)[0].nats[0])
    return nats / (batches * BATCH_SIZE * BLOCK_SIZE)
