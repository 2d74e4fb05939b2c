"""What each command of the command line does, once its arguments are parsed."""

import dataclasses
import hashlib
import math
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import TypeVar

import absl.logging
import jax
import numpy as np

from charjax.arguments import EvalCommand, InfoCommand, SampleCommand, TrainCommand
from charjax.checkpoint import load_params, read_header
from charjax.config import DataConfig, ModelConfig, TrainConfig
from charjax.corpus import Corpus, digest, read_ids
from charjax.errors import UserError
from charjax.evaluate import evaluate
from charjax.fit import fit
from charjax.generate import generate_text, stream_text
from charjax.memory import reuse_memory
from charjax.model import CharLSTM, init_params, model_to_use
from charjax.report.metrics import bits_per_char, perplexity
from charjax.report.printable import printable
from charjax.report.progress import make_reporter
from charjax.run_folder import check_same_text
from charjax.run_info import RunInfo
from charjax.sharding import use_all_cores

_Config = TypeVar("_Config", DataConfig, ModelConfig, TrainConfig)

# Orbax tells through absl of what charjax tells in its own words.
absl.logging.set_verbosity(absl.logging.FATAL)


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder, unless the user has set it up."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs compiled for one processor do not run on every other: each kind gets a folder of its own.
        kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(caches / "charjax" / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        # A process that was killed while it wrote a program leaves half a file, which JAX passes over with a warning.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")


def _processor() -> str:
    """What this processor can do, or its name where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def train(command: TrainCommand, given: frozenset[str]) -> None:
    """Trains, and says how to go on.

    Args:
        command: the arguments.
        given: names of the options that the user gave; a resumed run takes the others from its folder.
    """
    reuse_memory()
    use_all_cores()
    data, model_config, train_config = command.data, command.model, command.train
    if command.resume:
        info = read_header(command.out, quiet=True).info
        check_same_text(info, digest(command.text), command.text, command.out)
        data = _override(info.data, data, given)
        model_config = _override(info.model, model_config, given)
        train_config = _override(info.train, train_config, given)
    corpus = Corpus.from_file(command.text, vocab=data.vocab, train_frac=data.train_frac)
    model = CharLSTM.from_config(model_config, corpus.vocab.size)
    fit(model, corpus, train_config, out=command.out, resume=command.resume, reporter=make_reporter())
    print(f"saved in {command.out}; to generate text: charjax sample {command.out}", flush=True)


def _override(saved: _Config, asked: _Config, given: frozenset[str]) -> _Config:
    """The saved configuration, but for what the user gave this time."""
    names = {field.name for field in dataclasses.fields(saved)} & given
    return dataclasses.replace(saved, **{name: getattr(asked, name) for name in names})


def sample(command: SampleCommand) -> None:
    """Prints the context and what the model goes on with: one text as it comes, several one after another."""
    config = command.sampling
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if config.num_samples == 1:
        pieces = stream_text(model, params, info.vocab, command.context, config)
        first = next(pieces)  # a context that cannot be encoded is told of before anything is printed
        _write(command.context + first)
        for piece in pieces:
            _write(piece)
        _write("\n")
        return
    texts = generate_text(
        model,
        params,
        info.vocab,
        command.context,
        seed=config.seed,
        length=config.length,
        num_samples=config.num_samples,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    for number, text in enumerate(texts, start=1):
        _write(f"--- {number} of {len(texts)} ---\n{command.context}{text}\n")


def _write(text: str) -> None:
    """Writes model text at once: made harmless for a terminal, unchanged for a file or a pipe."""
    if sys.stdout.isatty():
        sys.stdout.write(printable(text, sys.stdout.encoding))
    else:
        sys.stdout.buffer.write(text.encode("utf-8", errors="surrogateescape"))
    sys.stdout.flush()


def evaluate_text(command: EvalCommand) -> None:
    """Prints nats per character, perplexity and bits per character."""
    reuse_memory()
    use_all_cores()
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if command.text is None:
        ids, what = _validation(command.run, info)
    else:
        ids, _, sha256 = read_ids(command.text, info.vocab)
        same = sha256 == info.corpus.sha256
        note = " (most of which it was trained on: leave TEXT out for the validation part alone)" if same else ""
        what = f"{command.text}{note}"
    loss = evaluate(model, params, ids)
    print(f"text        {what}")
    print(f"characters  {len(ids):,}")
    print(f"loss        {loss:.4f} nats/char")
    print(f"perplexity  {perplexity(loss):.4f}")
    print(f"bits/char   {bits_per_char(loss):.4f}")


def _validation(run_dir: Path, info: RunInfo) -> tuple[np.ndarray, str]:
    path = info.corpus.path
    if not Path(path).is_file():
        raise UserError(f"{path or info.corpus.name}, which {run_dir} was trained on, is not there; name a TEXT")
    if digest(path) != info.corpus.sha256:
        raise UserError(f"{path} has changed since {run_dir} was trained on it; name a TEXT")
    corpus = Corpus.from_file(path, vocab=info.vocab, train_frac=info.data.train_frac)
    return corpus.validation, f"the validation part of {path}"


def show_info(command: InfoCommand) -> None:
    """Prints what a run is made of and how far it came."""
    _, run, progress = read_header(command.run)
    model = CharLSTM.from_config(run.model, run.vocab.size)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    best = "not evaluated yet"
    if progress.best_val_loss is not None:
        best = (
            f"{progress.best_val_loss:.4f} nats/char at step {progress.best_step} "
            f"(perplexity {perplexity(progress.best_val_loss):.3f}, "
            f"{bits_per_char(progress.best_val_loss):.3f} bits/char)"
        )
    minutes, seconds = divmod(round(progress.elapsed_seconds), 60)
    sizes = f"{run.model.hidden_layers} x {run.model.hidden_dim} LSTM"
    rows = {
        "model": f"{sizes}, {parameters:,} parameters, {run.model.dtype}",
        "vocabulary": f"{run.vocab.kind}, {run.vocab.size} characters",
        "text": f"{run.corpus.name}, {run.corpus.train_characters:,} characters to train on and "
        f"{run.corpus.validation_characters:,} to validate",
        "progress": f"step {progress.step:,}, epoch {progress.epoch:.2f} of {run.train.epochs}, "
        f"{minutes} min {seconds} s",
        "best": best,
    }
    for config in (run.data, run.model, run.train):
        rows |= {f"--{name.replace('_', '-')}": repr(value) for name, value in dataclasses.asdict(config).items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
