"""Writes a model as a single HTML page that runs it offline in any browser.

html_model.js performs the same computation as `CharLSTM`, and html_page.js is the user interface. Recurrent weights and
those between layers are rounded to 8 bits with one scale per column, since rounding errors average out over the many
terms of a sum. The rows of layer 0 and the head, whose errors affect the gates and logits directly, are rounded to 16
bits.
"""

import base64
import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import jax
import numpy as np

from charjax._version import __version__
from charjax.array_types import Params
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab, encode_context
from charjax.export.loading import checked_out
from charjax.generation.inputs import checked_params
from charjax.host.atomic_file import writing_output
from charjax.model import CharLSTM, layer_weights
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_template import color_rules, content_policy, escape, letter_of
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.model_file import load_params

_SCALE = Scale("surprise in bits", 0.0, 10.0, 20)


def write_html(run: str | Path, out: str | Path, *, title: str | None = None, context: str = "") -> None:
    """Writes the best model of a run as a single HTML page, which runs the model without any network requests.

    Args:
        run: a run folder, or any folder with the three model files.
        out: the page to write; an existing file is replaced.
        title: heading of the page; by default the folder's name.
        context: text that is shown when the page opens.

    Raises:
        UserError: the run does not contain a model, `out` is a folder or a file of the run, or the context contains
            characters not in the vocabulary.
        OSError: the page cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, save_model
        >>> from charjax.export import write_html
        >>> model = CharLSTM(Vocab.ascii().size, hidden_dim=8, hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/run", model, init_params(jax.random.key(0), model), Vocab.ascii())
        ...     write_html(f"{folder}/run", f"{folder}/page.html", title="Not trained", context="The ")
        ...     Path(f"{folder}/page.html").read_text(encoding="utf-8").splitlines()[0]
        '<!doctype html>'
    """
    folder, page = checked_out(run, out)
    params, info, progress = load_params(folder)
    encode_context(info.vocab, context)
    model = CharLSTM(info.vocab.size, info.model.hidden_dim, info.model.hidden_layers)
    data = b"".join(_weights(model, checked_params(model, params)))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    # If the page is a symbolic link, its target is replaced, not the link itself.
    with writing_output(page.resolve()) as file:
        file.write(
            _page(
                title=folder.resolve().name if title is None else title,
                about=_about(info),
                facts=_facts(info, progress, size),
                shape=_shape(model, info.vocab, context),
                data=data,
            ).encode()
        )


def _page(*, title: str, about: str, facts: str, shape: dict[str, Any], data: bytes) -> str:
    style = _read("html_page.css") + color_rules(_SCALE, ".{}")
    script = _read("html_model.js") + _read("html_page.js")
    steps = "".join(f'<b class="{letter_of(level)}"></b>' for level in range(_SCALE.levels))
    defaults = SampleConfig()
    return Template(_read("html_page.html")).substitute(
        policy=content_policy(style, script),
        title=escape(title),
        style=style,
        about=escape(about),
        facts=escape(facts),
        legend=steps,
        most=f"{_SCALE.high:g}",
        temperature=f"{defaults.temperature:g}",
        length=defaults.length,
        vocab_size=shape["vocabSize"],
        # A "<" could end the HTML element.
        shape=json.dumps(shape).replace("<", "\\u003c"),
        weights=base64.b85encode(data, pad=True).decode().replace("<", ","),
        script=script,
    )


def _about(info: RunInfo) -> str:
    shape = f"{info.model.hidden_layers} x {info.model.hidden_dim}"
    return (
        f"A character-level LSTM ({shape}), trained on {info.corpus.name}. It runs in this page: nothing that you type "
        "leaves it."
    )


def _facts(info: RunInfo, progress: Progress, size: int) -> str:
    loss = progress.best_val_loss
    parts = [
        f"{size:,} parameters",
        f"{info.vocab.size} {'bytes' if info.vocab.kind == 'bytes' else 'characters'}",
        *([] if loss is None else [f"validation loss {loss:.4f} nats"]),
        f"made with charjax {__version__}",
    ]
    return " · ".join(parts)


def _shape(model: CharLSTM, vocab: Vocab, context: str) -> dict[str, Any]:
    return {
        "layers": model.hidden_layers,
        "hidden": model.hidden_dim,
        "vocabSize": vocab.size,
        "codes": None if vocab.kind == "bytes" else vocab.codes().tolist(),
        "most": _SCALE.high,
        "levels": _SCALE.levels,
        "context": context,
    }


def _weights(model: CharLSTM, params: Params) -> Iterator[bytes]:
    """Yields the arrays in little-endian form, in the order that html_model.js expects."""
    for n, (w_ih, w_hh, bias) in enumerate(layer_weights(model, params)):
        if n:
            yield _floats(bias)
            yield from _rounded(w_ih, np.int8)
        else:
            yield from _rounded(w_ih, np.int16)
            yield _floats(bias)
        yield from _rounded(w_hh, np.int8)
    yield from _rounded(params["head"]["kernel"], np.int16)
    yield _floats(params["head"]["bias"])


def _rounded(weights: Any, dtype: type[np.signedinteger[Any]]) -> Iterator[bytes]:
    """Yields weights [rows, columns] as integers, then the scale of each column."""
    array, largest = np.asarray(weights, np.float32), np.iinfo(dtype).max
    # A column of zeros gets a scale of 1.
    scales = np.abs(array).max(axis=0) / largest
    scales = np.where(scales > 0, scales, np.float32(1))
    yield np.rint(array / scales).astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    yield _floats(scales)


def _floats(values: Any) -> bytes:
    return np.asarray(values).astype("<f4").tobytes()


def _read(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
