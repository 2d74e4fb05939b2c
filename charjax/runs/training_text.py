"""Rereads the text that a run was trained on."""

import glob
from pathlib import Path

from charjax.array_types import Ids
from charjax.data.corpus import Corpus, read_corpus, read_ids
from charjax.data.text_source import STANDARD_INPUT
from charjax.errors import UserError
from charjax.runs.metadata import RunInfo


def read_training_text(info: RunInfo, run: str) -> Corpus:
    """Reads the text that a run was trained on; error messages call the run `run`.

    Raises:
        UserError: the text did not come from files, or they are missing or have changed.
        OSError: a file cannot be read.
    """
    paths = [*info.corpus.paths, *([info.data.validation] if info.data.validation else [])]
    _check_exist(paths if info.corpus.paths else [str(STANDARD_INPUT)], run)

    def recognize(digests: list[str]) -> None:
        if digests != info.corpus.digests:
            raise UserError(f"{' or '.join(paths)} has changed since {run} was trained on it")

    return read_corpus(info.corpus.paths, info.data, info.vocab, recognize=recognize)


def read_validation_text(info: RunInfo, run: str) -> Ids:
    """Reads only the validation text of a run if it is separate, otherwise all of the text; raises the same errors."""
    path = info.data.validation
    if path is None:
        return read_training_text(info, run).validation
    _check_exist([path], run)
    ids, _, sha256 = read_ids(path, info.vocab, separator=info.data.separator)
    if sha256 != info.corpus.validation_sha256:
        raise UserError(f"{path} has changed since {run} was trained")
    return ids


def _check_exist(paths: list[str], run: str) -> None:
    if str(STANDARD_INPUT) in paths:
        raise UserError(f"{run} was not trained on a file")
    for path in paths:
        if not Path(path).exists() and not glob.has_magic(path):
            raise UserError(f"{path}, which {run} was trained on, does not exist")
