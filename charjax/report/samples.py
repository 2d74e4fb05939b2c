"""samples.txt: what the model wrote at each evaluation, as it wrote it."""

from charjax.report.append_log import AppendLog
from charjax.report.metrics import Evaluation


class SamplesLog(AppendLog):
    """samples.txt open for appending; a context manager."""

    def append(self, evaluation: Evaluation, text: str) -> None:
        """Writes a heading with step, epoch and validation loss, the text and an empty line, and flushes."""
        heading = (
            f"=== step {evaluation.step}, epoch {evaluation.epoch:.2f}, "
            f"validation loss {evaluation.val_loss:.4f} nats per character ==="
        )
        self.write(f"{heading}\n{text}\n\n")
