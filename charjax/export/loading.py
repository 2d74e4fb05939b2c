"""Loads the model to export."""

from pathlib import Path

from charjax.array_types import Params
from charjax.data.vocab import Vocab
from charjax.errors import UserError, checked_path
from charjax.model import CharLSTM
from charjax.runs.model_file import load_params


def load_to_export(run: str | Path, out: str | Path) -> tuple[CharLSTM, Params, Vocab]:
    """Loads the best model of a run in portable form (float32, plain JAX) and checks the output path.

    Raises:
        UserError: the run does not contain a model, or `out` is a folder or a file of the run.
    """
    params, info, _ = load_params(checked_out(run, out)[0])
    shape = info.model
    model = CharLSTM(info.vocab.size, shape.hidden_dim, shape.hidden_layers, implementation="scan", dtype="float32")
    return model, params, info.vocab


def checked_out(run: str | Path, out: str | Path) -> tuple[Path, Path]:
    """Returns the paths of the run and of the file to write.

    Raises:
        UserError: `out` is a folder or a file of the run.
    """
    folder, file = checked_path("run", run), checked_path("out", out)
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file in it")
    if file.exists() and file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} is a file of the run, which the export would replace; name another file")
    return folder, file
