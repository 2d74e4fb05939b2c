"""`charjax score --dynamic`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from charjax.arguments import ScoreCommand
from charjax.corpus import Corpus, digest
from charjax.dynamic import dynamic_score_pieces
from charjax.model import CharLSTM
from charjax.run_info import RunInfo
from charjax.score import ScoredPiece
from charjax.types import Ids, Params


class DynamicReading:
    """Scores a text by weights that learn from it, and counts what it costs the weights as they were.

    Attributes:
        measured: what gradients were measured on, and why.
        static_nats: the sum over all characters that count, of the weights as they were.
    """

    def __init__(self, command: ScoreCommand, info: RunInfo) -> None:
        """Finds the text that the run was trained on, if it can be had."""
        self._learning, self._top = command.learning, command.top + 1
        self._train_ids, self.measured = _training_text(info)
        self.static_nats = 0.0

    @property
    def way(self) -> str:
        """How the text is read."""
        return f"in one pass, by weights that learn after every {self._learning.seq_len:,} characters"

    def scored(
        self, model: CharLSTM, params: Params, text: Iterable[np.ndarray], separator: np.ndarray | None
    ) -> Iterator[ScoredPiece]:
        """Scores a text; see `dynamic_score_pieces`."""
        pieces = dynamic_score_pieces(
            model,
            params,
            text,
            separator=separator,
            top=self._top,
            train_ids=self._train_ids,
            seq_len=self._learning.seq_len,
            learning_rate=self._learning.learning_rate,
            decay=self._learning.decay,
        )
        for piece in pieces:
            self.static_nats += float(piece.static.nats[~piece.static.begins].sum(dtype=np.float64))
            yield piece.dynamic


def _training_text(info: RunInfo) -> tuple[Ids | None, str]:
    """What a run was trained on, if it is still there: -> (its ids, what to say of it)."""
    path = info.corpus.path
    if not path:
        return None, "measured on the text itself: the run was trained on a text that came from no file"
    try:
        if not Path(path).is_file():
            return None, f"measured on the text itself: {path}, which the run was trained on, is not there"
        if digest(path) != info.corpus.sha256:
            return None, f"measured on the text itself: {path} has changed since the run was trained on it"
    except OSError as error:
        return None, f"measured on the text itself: {path}, which the run was trained on: {error.strerror}"
    train_ids = Corpus.from_file(path, vocab=info.vocab, train_frac=info.data.train_frac).train
    return train_ids, f"measured on {path}, which the run was trained on, then on the text itself"
