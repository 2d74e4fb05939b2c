"""`charjax eval`."""

from pathlib import Path

from charjax.array_types import Ids
from charjax.cli.arguments import EvalCommand
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


def _validation(run_dir: Path, info: RunInfo) -> tuple[Ids, str]:
    path = info.corpus.path
    if not Path(path).is_file():
        raise UserError(f"{path or info.corpus.name}, which {run_dir} was trained on, is not there; name a TEXT")
    if digest(path) != info.corpus.sha256:
        raise UserError(f"{path} has changed since {run_dir} was trained on it; name a TEXT")
    corpus = Corpus.from_file(path, vocab=info.vocab, train_frac=info.data.train_frac)
    return corpus.validation, f"the validation part of {path}"
