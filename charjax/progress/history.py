"""A reporter that keeps evaluations and samples, for plots in a notebook."""

from charjax.metrics import Evaluation
from charjax.progress.reporter import NullReporter


class History(NullReporter):
    """Keeps the evaluations and samples of `fit(..., reporter=history)`.

    Attributes:
        evaluations: the `Evaluation`s so far, in order.
        samples: the sample at each evaluation; empty strings if sample_length is 0.

    Examples:
        >>> from charjax import Evaluation, History
        >>> history = History()
        >>> losses = dict(train_loss=1.9, val_loss=2.0)
        >>> measured = Evaluation(step=100, epoch=1.0, **losses, chars_per_second=1e6, elapsed_seconds=3.0)
        >>> history.evaluation(measured, "ROMEO:")  # fit(model, corpus, reporter=history) calls this
        >>> [evaluation.val_loss for evaluation in history.evaluations], history.samples
        ([2.0], ['ROMEO:'])
    """

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self.samples: list[str] = []

    def evaluation(self, evaluation: Evaluation, sample_text: str = "") -> None:
        """Keeps the evaluation and its sample."""
        self.evaluations.append(evaluation)
        self.samples.append(sample_text)
