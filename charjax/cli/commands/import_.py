"""`charjax import`: creates a model folder from weights trained with PyTorch."""

from pathlib import Path

from charjax.cli.arguments import ImportCommand
from charjax.cli.output import shell_path, write
from charjax.data.corpus import read_pieces
from charjax.data.vocab import Vocab
from charjax.runs.imported import import_model
from charjax.runs.safe_files import read_json


def run(command: ImportCommand) -> None:
    """Creates the folder and prints a command that uses it."""
    import_model(command.file, command.out, vocab=_vocab(command.vocab))
    write(f"To generate text: charjax sample {shell_path(command.out)}\n")


def _vocab(choice: str | None) -> Vocab | None:
    """Returns the vocabulary that --vocab names: a kind, a vocab.json, or text that contains all of its characters."""
    match choice:
        case None:
            return None
        case "ascii":
            return Vocab.ascii()
        case "bytes":
            return Vocab.bytes()
    path = Path(choice)
    return Vocab.from_dict(read_json(path.resolve())) if path.suffix == ".json" else read_pieces(path, "chars").vocab
