"""The course of a training, kept in memory: for loss curves and samples in a notebook."""

from charjax.metrics import Evaluation
from charjax.progress.reporter import NullReporter


class History(NullReporter):
    """Keeps what `fit(..., reporter=history)` measures and the model writes.

    Attributes:
        evaluations: one at each evaluation.
        samples: the text that the model wrote at each, empty with sample_length=0.
    """

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self.samples: list[str] = []

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Keeps both."""
        self.evaluations.append(evaluation)
        self.samples.append(sample_text)
