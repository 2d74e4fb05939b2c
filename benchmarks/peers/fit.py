"""`charjax.fit` as users call it: trainings that stop after every few steps, and the start of one."""

import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import serve


def training(text: str, every: int, out: str | None, memory_mb: int | None, **sizes: int) -> None:
    """Trains on and on; each request after the first lets it take `every` steps, whose seconds are the answer.

    Args:
        text: path of the text.
        every: steps per request, and from one checkpoint to the next.
        out: run folder; None saves nothing.
        memory_mb: of the text that may be in memory at once; None for the default.
        **sizes: hidden_dim, hidden_layers, batch_size and seq_len.
    """
    from charjax.distributed.mesh import use_all_cores

    use_all_cores()
    import jax

    from charjax import CharLSTM, Corpus, fit
    from charjax.progress.reporter import NullReporter

    class Reporter(NullReporter):
        """Answers, and waits for the next request, in the middle of the training."""

        def update(self, step: int, loss: float) -> None:
            if step % every == 0:
                jax.block_until_ready(jax.live_arrays())
                self.wait({"seconds": time.perf_counter() - self.began})

        def wait(self, answer: dict[str, Any]) -> None:
            serve.reply(answer)
            if next(serve.requests(), None) is None:
                sys.exit()
            self.began = time.perf_counter()

    corpus = Corpus.from_file(text, memory_mb=memory_mb)
    model = CharLSTM(corpus.vocab.size, hidden_dim=sizes["hidden_dim"], hidden_layers=sizes["hidden_layers"])
    reporter = Reporter()
    reporter.wait({})
    fit(
        model, corpus, out=out, reporter=reporter, batch_size=sizes["batch_size"], seq_len=sizes["seq_len"],
        epochs=1000, eval_every=10**9, checkpoint_every=every, text_memory_mb=memory_mb,
    )  # fmt: skip


def start(text: str) -> dict[str, float]:
    """Trains a small model until the first loss is known.

    Returns:
        "read_seconds" of the text, "training_after_seconds" from before the imports, and "peak_megabytes" above what
        the process took after them.
    """
    start = time.perf_counter()
    from charjax.distributed.mesh import use_all_cores

    use_all_cores()
    from charjax import CharLSTM, Corpus, fit
    from charjax.progress.reporter import NullReporter

    class StartedError(Exception): ...

    class Reporter(NullReporter):
        def update(self, step: int, loss: float) -> None:
            if loss == loss:  # noqa: PLR0124 -- NaN until there is one
                raise StartedError

    imported, before = time.perf_counter(), _peak_kilobytes()
    corpus = Corpus.from_file(Path(text))
    read = time.perf_counter()
    model = CharLSTM(corpus.vocab.size, hidden_dim=128, hidden_layers=1)
    try:
        fit(model, corpus, batch_size=64, reporter=Reporter())
    except StartedError:
        trained = time.perf_counter()
    return {
        "read_seconds": read - imported,
        "training_after_seconds": trained - start,
        "peak_megabytes": (_peak_kilobytes() - before) / 1024,
    }


def _peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def curve(text: str, seconds: float, every: int, **options: Any) -> dict[str, Any]:
    """Trains for so many seconds from the first step on, at a constant rate.

    Args:
        text: path of the text.
        seconds: after which the next evaluation ends the training.
        every: steps from one evaluation to the next.
        **options: hidden_dim, hidden_layers, dropout, and further options of `fit`.

    Returns:
        "chars_per_second" and "seconds_per_epoch", medians over the evaluations but the first; "evaluations", each
        [seconds since the call, epoch, training loss, validation loss].
    """
    start = time.perf_counter()
    from charjax import CharLSTM, Corpus, Evaluation, fit
    from charjax.ops.lstm.api import default_dtype

    corpus = Corpus.from_file(text)
    sizes = {name: options.pop(name) for name in ("hidden_dim", "hidden_layers", "dropout")}
    found: list[tuple[float, Evaluation]] = []

    def measure(evaluation: Evaluation, state: Any) -> bool:
        del state
        found.append((time.perf_counter() - start, evaluation))
        return evaluation.elapsed_seconds >= seconds

    model = CharLSTM(corpus.vocab.size, **sizes, dtype=default_dtype())
    fit(
        model, corpus, progress=False, callbacks=[measure], epochs=100_000, eval_every=every, sample_length=0,
        schedule="constant", **options,
    )  # fmt: skip
    speed = statistics.median(it.chars_per_second or 0.0 for _, it in found[1:] or found)
    return {
        "chars_per_second": speed,
        "seconds_per_epoch": len(corpus.train) / speed,
        "evaluations": [[passed, it.epoch, it.train_loss, it.val_loss] for passed, it in found],
    }
