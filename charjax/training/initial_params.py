"""Initializes weights from another model, whose vocabulary may differ."""

import logging
from pathlib import Path

import jax
import numpy as np

from charjax.array_types import Params
from charjax.data.vocab import Vocab, show_characters
from charjax.errors import UserError, checked_path
from charjax.model import CharLSTM, init_params
from charjax.runs.model_file import load_params

_log = logging.getLogger("charjax")


def initial_params(folder: str | Path, model: CharLSTM, vocab: Vocab, *, seed: int) -> tuple[Params, int]:
    """Returns the parameters of another model, adapted to a vocabulary, and the step that it was saved at.

    Row c of layer 0's w_ih and column c of the head belong to character c, and move with it to its new id. A character
    not in the other model's vocabulary gets freshly initialized weights and the smallest head bias of the known ones,
    so that the predictions for known characters hardly change.

    Args:
        folder: a run folder or model folder.
        model: the model that the parameters are for.
        vocab: the vocabulary of that model.
        seed: seed for the weights of new characters.

    Raises:
        UserError: the folder does not contain a model, or the model has a different number of layers or hidden units.
    """
    params, info, progress = load_params(checked_path("init_from", folder))
    ours, theirs = model.config, info.model
    for name in ("hidden_dim", "hidden_layers"):
        if getattr(ours, name) != getattr(theirs, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{folder} was trained with {flag} {getattr(theirs, name)}, not {getattr(ours, name)}; "
                f"to start from it, train with {flag} {getattr(theirs, name)}"
            )
    old = jax.device_get(params)
    known = _ids_in(info.vocab, vocab)
    new = jax.device_get(init_params(jax.random.key(seed), model))
    has, source = known >= 0, known[known >= 0]
    first, head = new["layer_0"]["cell"], new["head"]
    inputs = np.where(has[:, None], old["layer_0"]["cell"]["w_ih"][known], first["w_ih"])
    kernel = np.where(has, old["head"]["kernel"][:, known], head["kernel"])
    least = old["head"]["bias"][source].min() if len(source) else 0
    bias = np.where(has, old["head"]["bias"][known], least)
    _log.info("%s", _described(folder, progress.step, vocab, has))
    layers = {**old, "layer_0": {"cell": {**old["layer_0"]["cell"], "w_ih": inputs}}}
    return {**layers, "head": {"kernel": kernel, "bias": bias.astype(np.float32)}}, progress.step


def _ids_in(earlier: Vocab, vocab: Vocab) -> np.ndarray:
    """Returns the id in `earlier` of each character in `vocab`, or -1 if it is not there; [V] int64.

    In a byte vocabulary, values below 128 are characters; the others match only another byte vocabulary.
    """
    ids = {code: n for n, code in enumerate(earlier.codes().tolist()) if _comparable(earlier, vocab, code)}
    return np.array([ids.get(code, -1) if _comparable(vocab, earlier, code) else -1 for code in vocab.codes().tolist()])


def _comparable(vocab: Vocab, other: Vocab, code: int) -> bool:
    return code < 128 or vocab.kind == other.kind or "bytes" not in (vocab.kind, other.kind)


def _described(folder: str | Path, step: int, vocab: Vocab, has: np.ndarray) -> str:
    found = f"starting from {folder} (step {step:,})"
    if has.all():
        return f"{found}, which knows all characters in the vocabulary"
    fresh = vocab.codes()[~has]
    if vocab.kind == "bytes":
        return f"{found}; {len(fresh)} of {vocab.size} bytes are new to it"
    shown = show_characters("".join(map(chr, fresh)))
    return f"{found}; {len(fresh)} of {vocab.size} characters are new to it: {shown}"
