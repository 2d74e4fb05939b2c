"""Writes StableHLO programs (`jax.export`) that score and generate text with a model, without charjax installed.

The file is a zip archive of model.json, weights.npz, and the programs score.bin and generate.bin.
"""

import contextlib
import functools
import importlib.util
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from charjax._version import __version__
from charjax.array_types import Array, LSTMCarry, Params
from charjax.errors import UserError
from charjax.export.loading import load_to_export
from charjax.generation.sampling import Settings, gumbel_noise, sample
from charjax.generation.xla_decoder import XlaDecoder
from charjax.host.atomic_file import writing_output
from charjax.host.jax_modes import in_default_modes
from charjax.model import CharLSTM
from charjax.ops.lstm.single_step import StepState

_PLATFORMS = ("cpu", "cuda", "tpu")

# Example code that reads the file; FILE stands for its name.
READER = """\
# pip install jax flatbuffers
import io
import json
import zipfile

import jax.export
import numpy as np

with zipfile.ZipFile("FILE") as file:
    info = json.loads(file.read("model.json"))
    weights = jax.device_put(dict(np.load(io.BytesIO(file.read("weights.npz")))))
    programs = [jax.export.deserialize(bytearray(file.read(f"{name}.bin"))) for name in ("score", "generate")]
score, generate = (jax.jit(program.call) for program in programs)
characters = info["vocab"]["characters"] or "".join(map(chr, range(256)))  # of "ascii" and "bytes": the codes

context = np.array([[characters.index(character) for character in "The "]])
h = c = np.zeros((info["hidden_layers"], 1, info["hidden_dim"]), np.float32)  # before the first character
log_probs, h, c = score(weights, context, h, c)
seed, temperature, top_k, top_p, min_p = 0, 0.8, 0, 1.0, 0.0  # no limits
ids = generate(weights, context, seed, np.arange(200), temperature, top_k, top_p, min_p)
print("".join(characters[i] for i in np.asarray(ids[0])))
"""


@in_default_modes
def write_stablehlo(run: str | Path, out: str | Path) -> None:
    """Writes programs that score and generate text on CPU, CUDA and TPU; requires pip install "charjax[export]".

    Both programs take the weights as their first argument, a dict of the arrays in weights.npz. B, T, P and N are
    dynamic:

    - score: ids [B, T] int32 and the state before them, h and c, each [L, B, H] float32 -> log-probabilities [B, T, V]
      for the character after each position, and the state after the last one.
    - generate: context [B, P] int32, a seed, the indices 0 to N - 1 of the characters to generate [N] int32,
      temperature, top_k (0 for no limit), top_p (1 for no limit), min_p -> ids [B, N] int32, the same as
      `charjax.generate` samples with a key made from this seed.

    model.json contains the vocabulary, in the format of vocab.json, and the model's sizes.

    Args:
        run: a run folder, or any folder with the three model files.
        out: the file to write; an existing file is replaced.

    Raises:
        UserError: flatbuffers is not installed, the run does not contain a model, or `out` is a folder or a file of the
            run.
        OSError: the file cannot be written.

    Examples:
        >>> import tempfile, zipfile
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, init_params, save_model
        >>> from charjax.export import write_stablehlo
        >>> model = CharLSTM(Vocab.ascii().size, hidden_dim=8, hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/run", model, init_params(jax.random.key(0), model), Vocab.ascii())
        ...     write_stablehlo(f"{folder}/run", f"{folder}/model.zip")
        ...     zipfile.ZipFile(f"{folder}/model.zip").namelist()
        ['model.json', 'weights.npz', 'score.bin', 'generate.bin']
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError('StableHLO export needs flatbuffers; install it with pip install "charjax[export]"')
    model, params, vocab = load_to_export(run, out)
    info = {
        "charjax_version": __version__,
        "hidden_dim": model.hidden_dim,
        "hidden_layers": model.hidden_layers,
        "vocab": vocab.to_dict(),
    }
    weights: dict[str, Any] = {name: np.asarray(array) for name, array in flatten_dict(params, sep=".").items()}
    arrays = io.BytesIO()
    np.savez(arrays, **weights)
    content = {"model.json": json.dumps(info, indent=2).encode(), "weights.npz": arrays.getvalue()}
    with writing_output(Path(out)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in (content | _programs(model, weights)).items():
            archive.writestr(name, data)


def _programs(model: CharLSTM, weights: Params) -> dict[str, bytes]:
    """Exports the programs and returns them in serialized form by file name."""
    batch, length, context, characters = jax.export.symbolic_shape("batch, length, context, characters")
    whole, real = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.int32, jnp.float32))
    state = real((model.hidden_layers, batch, model.hidden_dim))
    arguments: dict[Any, list[Any]] = {
        _score: [whole((batch, length)), state, state],
        _generate: [whole((batch, context)), whole(()), whole((characters,)), real(()), whole(()), real(()), real(())],
    }
    programs = {}
    with _without_paths():
        for function, types in arguments.items():
            export = jax.export.export(jax.jit(functools.partial(function, model)), platforms=_PLATFORMS)
            programs[f"{function.__name__[1:]}.bin"] = bytes(export(weights, *types).serialize())
    return programs


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Keeps source file paths, which reveal user and folder names, out of the programs."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, "^.*/")
    try:
        yield
    finally:
        jax.config.update(name, before)


def _score(model: CharLSTM, weights: Params, ids: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    carry = tuple(LSTMCarry(c[n], h[n]) for n in range(model.hidden_layers))
    logits, carry = model.apply({"params": unflatten_dict(weights, sep=".")}, ids, carry)
    return jax.nn.log_softmax(logits), jnp.stack([layer.h for layer in carry]), jnp.stack([layer.c for layer in carry])


def _generate(
    model: CharLSTM,
    weights: Params,
    context: Array,
    seed: Array,
    positions: Array,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    min_p: Array,
) -> Array:
    decoder, batch = XlaDecoder(model, "float32"), context.shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(batch))
    settings = Settings(
        temperature, jnp.where(top_k > 0, top_k, model.vocab_size), jnp.where(top_p < 1, top_p, jnp.inf), min_p
    )
    sample_each = jax.vmap(functools.partial(sample, settings=settings, filtered=True))
    packed = decoder.pack(unflatten_dict(weights, sep="."))
    # `init_carry` would need a concrete number for B.
    zeros = jnp.zeros((batch, model.hidden_dim), jnp.float32)
    state = decoder.prefill(packed, StepState((LSTMCarry(zeros, zeros),) * model.hidden_layers, ()), context)

    def write(state: StepState, position: Array) -> tuple[StepState, Array]:
        noise_BV = gumbel_noise(keys, position[None], model.vocab_size)[0]
        ids_B = sample_each(noise_BV, decoder.next_logits(packed, state))
        return decoder.step(packed, state, ids_B), ids_B

    return jax.lax.scan(write, state, positions)[1].T
