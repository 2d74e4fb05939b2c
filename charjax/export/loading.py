"""Loads the model to export."""

from pathlib import Path

from charjax.array_types import Params
from charjax.data.vocab import Vocab
from charjax.errors import checked_path
from charjax.model import CharLSTM
from charjax.runs.model_file import load_params
from charjax.runs.output_file import check_output


def load_to_export(run: str | Path, out: str | Path) -> tuple[CharLSTM, Params, Vocab]:
    """Loads the best model of a run in portable form (float32, plain JAX) and checks the output path.

    Raises:
        UserError: the run does not contain a model, or `out` is a folder, a file of the run, or text that it was
            trained on.
    """
    params, info, _ = load_params(checked_out(run, out)[0])
    shape = info.model
    model = CharLSTM(info.vocab.size, shape.hidden_dim, shape.hidden_layers, implementation="scan", dtype="float32")
    return model, params, info.vocab


def checked_out(run: str | Path, out: str | Path) -> tuple[Path, Path]:
    """Returns the paths of the run and of the file to write.

    Raises:
        UserError: `out` is a folder, a file of the run, or text that it was trained on.
    """
    folder, file = checked_path("run", run), checked_path("out", out)
    check_output(file, [folder])
    return folder, file
