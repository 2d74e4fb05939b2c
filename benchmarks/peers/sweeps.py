"""The models of a sweep, trained together by `sweep` or in turn by `fit`."""

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def together(text: str, characters: int, swept: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Trains all models by one `sweep`; `swept` are its settings, `shared` sizes of the model and the training.

    Returns:
        "seconds" from the call to the result, which a second request's do without compilation, and the last validation
        "losses".
    """
    from charjax import sweep

    model, corpus, options = _problem(text, characters, shared)
    start = time.perf_counter()
    result = sweep(model, corpus, **swept, **options)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "losses": [member.evaluations[-1].val_loss for member in result.members]}


def in_turn(text: str, characters: int, swept: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Trains each model by a `fit` of its own, one after the other; arguments and results as for `together`."""
    from charjax import History, fit

    model, corpus, options = _problem(text, characters, shared)

    losses, start = [], time.perf_counter()
    for rate, dropout, seed in members(swept):
        history, one = History(), model.clone(dropout=dropout)
        fit(one, corpus, learning_rate=rate, seed=seed, reporter=history, sample_length=0, **options)
        losses.append(history.evaluations[-1].val_loss)
    return {"seconds": time.perf_counter() - start, "losses": losses}


def members(swept: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    """Returns learning rate, dropout and seed of each model, in the order of a sweep."""
    return list(itertools.product(swept["learning_rate"], swept["dropout"], range(swept["seeds"])))


def _problem(text: str, characters: int, shared: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    from charjax.distributed.mesh import use_all_cores

    use_all_cores()
    from charjax import CharLSTM, Corpus

    corpus, options = Corpus.from_text(Path(text).read_text()[:characters]), dict(shared)
    sizes = {name: options.pop(name) for name in ("hidden_dim", "hidden_layers", "dtype")}
    return CharLSTM(corpus.vocab.size, **sizes), corpus, options
