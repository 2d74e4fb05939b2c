"""`charjax eval`: measures loss, perplexity and bits per character."""

from charjax.cli.arguments import EvalCommand
from charjax.cli.output import write_facts, write_json
from charjax.data.corpus import read_ids
from charjax.distributed.mesh import use_all_cores
from charjax.errors import UserError
from charjax.host.memory import reuse_memory
from charjax.metrics import bits_per_char, perplexity
from charjax.model import model_to_use
from charjax.runs.model_file import load_params
from charjax.runs.training_text import read_validation_text
from charjax.training.evaluate import evaluate


def run(command: EvalCommand) -> None:
    """Prints nats per character, perplexity and bits per character."""
    reuse_memory()
    use_all_cores()
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if command.text is None:
        try:
            ids = read_validation_text(info, str(command.run))
        except UserError as error:
            raise UserError(f"{error}; pass a TEXT") from None
        path, parts, was_trained_on = info.data.validation, info.corpus.paths, False
        text = path or f"the validation part of {', '.join(parts)}"
    else:
        ids, _, sha256 = read_ids(
            command.text, info.vocab, separator=info.data.separator, on_unknown=command.on_unknown
        )
        path, parts, was_trained_on = str(command.text), (), sha256 == info.corpus.sha256
        part = "" if info.data.validation else "most of "
        note = f" (the run was trained on {part}it; omit TEXT to use only its validation text)"
        text = f"{path}{note if was_trained_on else ''}"
    loss = evaluate(model, params, ids)
    if command.json:
        what = {"text": path, "validation_part_of": [] if path else parts, "was_trained_on": was_trained_on}
        measured = {"loss": loss, "perplexity": perplexity(loss), "bits_per_char": bits_per_char(loss)}
        write_json({"run": str(command.run), **what, "characters": len(ids), **measured})
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
