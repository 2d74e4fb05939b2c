"""Rereads the text that a run was trained on."""

import glob
from pathlib import Path

from charjax.data.corpus import Corpus, read_corpus
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
    if not info.corpus.paths or str(STANDARD_INPUT) in paths:
        raise UserError(f"{run} was not trained on a file")
    for path in paths:
        if not Path(path).exists() and not glob.has_magic(path):
            raise UserError(f"{path}, which {run} was trained on, does not exist")

    def recognize(digests: list[str]) -> None:
        if digests != info.corpus.digests:
            raise UserError(f"{' or '.join(paths)} has changed since {run} was trained on it")

    return read_corpus(info.corpus.paths, info.data, info.vocab, recognize=recognize)
