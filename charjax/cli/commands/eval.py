"""`charjax eval`: loss, perplexity and bits per character of a text."""

from pathlib import Path

from charjax.array_types import Ids
from charjax.cli.arguments import EvalCommand
from charjax.cli.output import write_facts, write_json
from charjax.data.corpus import Corpus, read_ids
from charjax.data.survey import digest
from charjax.distributed.mesh import use_all_cores
from charjax.errors import UserError
from charjax.host.memory import reuse_memory
from charjax.metrics import bits_per_char, perplexity
from charjax.model import model_to_use
from charjax.runs.metadata import RunInfo
from charjax.runs.model_file import load_params
from charjax.training.evaluate import evaluate


def run(command: EvalCommand) -> None:
    """Prints nats per character, perplexity and bits per character."""
    reuse_memory()
    use_all_cores()
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if command.text is None:
        ids, text = _validation_text(command.run, info)
    else:
        ids, _, sha256 = read_ids(command.text, info.vocab)
        trained_on = " (the run was trained on most of it: omit TEXT to measure only its validation part)"
        text = f"{command.text}{trained_on if sha256 == info.corpus.sha256 else ''}"
    loss = evaluate(model, params, ids)
    if command.json:
        measured = {"loss": loss, "perplexity": perplexity(loss), "bits_per_char": bits_per_char(loss)}
        write_json({"run": str(command.run), "text": text, "characters": len(ids), **measured})
        return
    write_facts(
        [
            ("text", text),
            ("characters", f"{len(ids):,}"),
            ("loss", f"{loss:.4f} nats/char"),
            ("perplexity", f"{perplexity(loss):.4f}"),
            ("bits/char", f"{bits_per_char(loss):.4f}"),
        ]
    )


def _validation_text(run_dir: Path, info: RunInfo) -> tuple[Ids, str]:
    """Returns the ids of the validation part of the training text, and its name."""
    path = info.corpus.path
    if not Path(path).is_file():
        raise UserError(f"{path or info.corpus.name}, which {run_dir} was trained on, does not exist; pass a TEXT")
    if digest(path) != info.corpus.sha256:
        raise UserError(f"{path} has changed since {run_dir} was trained on it; pass a TEXT")
    corpus = Corpus.from_file(path, vocab=info.vocab, train_frac=info.data.train_frac)
    return corpus.validation, f"the validation part of {path}"
