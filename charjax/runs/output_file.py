"""Checks that a file to be written would not replace one that is still needed."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from charjax.data.text_source import STANDARD_INPUT, text_files
from charjax.errors import UserError
from charjax.runs.layout import CONFIG
from charjax.runs.model_file import read_info


def check_output(file: Path, runs: Iterable[Path], texts: Sequence[Path] = ()) -> None:
    """Checks an output file against the runs and the text files that it is made from.

    Raises:
        UserError: the file is a folder, or would replace a file of a run, a text file, or text that a run was trained
            or validated on; or a run is not valid.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file in it")
    if not file.exists():
        return
    if any(text.exists() and file.samefile(text) for text in texts):
        raise UserError(f"{file} is the text itself, which this would replace; choose another file")
    for run in runs:
        if file.resolve().is_relative_to(run.resolve()):
            raise UserError(f"{file} is a file of the run, which this would replace; choose another file")
        if (run / CONFIG).exists() and any(_is_text(file, path) for path in _trained_on(run)):
            raise UserError(f"{run} was trained on {file}, which this would replace; choose another file")


def _trained_on(run: Path) -> list[Path]:
    info = read_info(run)
    paths = map(Path, [*info.corpus.paths, *([info.data.validation] if info.data.validation else [])])
    return [path for path in paths if path != STANDARD_INPUT]


def _is_text(file: Path, path: Path) -> bool:
    """Returns True if a file is the text at a path, is in that folder, or matches that pattern."""
    if path.is_dir():
        return file.resolve().is_relative_to(path.resolve())
    if path.exists():
        return file.samefile(path)
    try:
        return any(file.samefile(match) for match in text_files(path))
    except UserError:  # the text no longer exists
        return False
