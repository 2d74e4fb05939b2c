"""A run folder while it is written to: checkpoints, metrics.jsonl and samples.txt kept in step with one another."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path

from charjax import __version__
from charjax.checkpoint import CheckpointStore, CorpusInfo, Progress, RunInfo, read_info, restore_checkpoint
from charjax.config import DataConfig, TrainConfig
from charjax.corpus import Corpus
from charjax.errors import UserError
from charjax.model import CharLSTM
from charjax.report.metrics import Evaluation, MetricsLog
from charjax.report.samples import SamplesLog
from charjax.train import TrainState

# What may differ between a run and its continuation: everything else shapes the state or the order of the text.
_FIXED_TRAIN_FIELDS = ("batch_size", "seq_len", "seed")


def describe_run(model: CharLSTM, corpus: Corpus, config: TrainConfig) -> RunInfo:
    """What a run is made of, as it stands in its folder.

    Raises:
        UserError: sizes of the model out of range, or a model made for another vocabulary than the text's.
    """
    if model.vocab_size != corpus.vocab.size:
        raise UserError(f"the model's vocab_size is {model.vocab_size}, the text's vocabulary has {corpus.vocab.size}")
    return RunInfo(
        data=DataConfig(vocab=corpus.vocab.kind, train_frac=corpus.train_frac),
        model=model.config,
        train=config,
        vocab=corpus.vocab,
        corpus=CorpusInfo(
            name=corpus.name,
            sha256=corpus.sha256,
            train_characters=len(corpus.train),
            validation_characters=len(corpus.validation),
        ),
        charjax_version=__version__,
    )


def check_same_run(earlier: RunInfo, now: RunInfo, path: Path) -> None:
    """Checks that training can go on in a run folder.

    Raises:
        UserError: another text, architecture, vocabulary, split, batch_size, seq_len or seed.
    """
    if earlier.corpus.sha256 != now.corpus.sha256:
        raise UserError(
            f"{path} was trained on another text ({earlier.corpus.name}, {_size(earlier.corpus)} characters) than "
            f"{now.corpus.name} ({_size(now.corpus)} characters); resume with that text, or choose another --out"
        )
    pairs = [(name, earlier.model, now.model) for name in _fields(earlier.model) if name != "implementation"]
    pairs += [("train_frac", earlier.data, now.data)]
    pairs += [(name, earlier.train, now.train) for name in _FIXED_TRAIN_FIELDS]
    for name, old, new in pairs:
        if getattr(old, name) != getattr(new, name):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{path} was trained with {flag} {getattr(old, name)}, not {getattr(new, name)}; leave {flag} out to "
                "resume it, or choose another --out"
            )
    if earlier.vocab != now.vocab:
        raise UserError(f"{path} was trained with another --vocab; leave it out to resume, or choose another --out")


def _size(corpus: CorpusInfo) -> int:
    return corpus.train_characters + corpus.validation_characters


def _fields(config: object) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]


class RunFolder:
    """A run folder open for writing; a context manager that waits for what is still being saved.

    Attributes:
        path: the folder.
        resumed: whether it goes on from an earlier checkpoint.
    """

    def __init__(self, path: str | Path, info: RunInfo, *, resume: bool) -> None:
        """Checks the folder; nothing is written before the first save.

        Raises:
            UserError: without `resume`, a folder that is not empty; with it, one that is no run or does not match.
        """
        self.path = Path(path).resolve()
        self.resumed = resume
        self._info = info
        self._open = ExitStack()
        self._store: CheckpointStore | None = None
        self._metrics: MetricsLog
        self._samples: SamplesLog
        if resume:
            check_same_run(read_info(self.path)[0], info, Path(path))
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{path} is a file; give --out a folder")
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{path} exists already; add --resume to go on with it, or choose another --out")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def restore(self, abstract: TrainState) -> tuple[TrainState, Progress]:
        """Reads the latest checkpoint and takes metrics.jsonl and samples.txt back to where they stood then.

        Args:
            abstract: shapes, dtypes and shardings; see `abstract_train_state`.
        """
        state, _, progress = restore_checkpoint(self.path, abstract)
        self._start(progress)
        return state, progress

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves a checkpoint while training goes on; the first save of a new run makes the folder.

        Raises:
            OSError: the disk is full or may not be written; checkpoints saved before stay as they are.
        """
        if self._store is None:
            self._start(progress)
        assert self._store is not None
        sizes = {"metrics_bytes": self._metrics.size, "samples_bytes": self._samples.size}
        self._store.save(progress.step, state, dataclasses.replace(progress, **sizes))

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        if self._store is not None:
            self._store.wait()

    def record(self, evaluation: Evaluation, sample: str) -> None:
        """Appends an evaluation to metrics.jsonl and its sample, where there is one, to samples.txt."""
        self._metrics.append(evaluation)
        if sample:
            self._samples.append(evaluation, sample)

    def _start(self, progress: Progress) -> None:
        """Opens the files, in the order in which they are to be closed backwards."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._metrics = self._open.enter_context(
            MetricsLog(self.path / "metrics.jsonl", size=progress.metrics_bytes)
        )
        self._samples = self._open.enter_context(
            SamplesLog(self.path / "samples.txt", size=progress.samples_bytes)
        )
        self._store = self._open.enter_context(CheckpointStore(self.path, self._info))
