"""Builds the configuration of a run and checks that a resumed run has the same one."""

import dataclasses
from pathlib import Path
from typing import Any

from charjax._version import __version__
from charjax.config import DataConfig, TrainConfig
from charjax.data.corpus import Corpus, check_corpus
from charjax.errors import UserError
from charjax.model import CharLSTM, check_model
from charjax.runs.metadata import CorpusInfo, FitInfo, RunInfo

# Fields that determine the shapes of the state or the order of the text.
_FIXED_TRAIN_FIELDS = ("batch_size", "seq_len", "seed")


def describe_run(model: CharLSTM, corpus: Corpus, config: TrainConfig, fit: FitInfo | None = None) -> RunInfo:
    """Builds the configuration that is saved with a run.

    Raises:
        UserError: the model's vocab_size does not match the text, or an argument has the wrong type.
    """
    check_model(model)
    check_corpus(corpus)
    if model.vocab_size != corpus.vocab.size:
        raise UserError(f"the model's vocab_size is {model.vocab_size}, but the text's is {corpus.vocab.size}")
    return RunInfo(
        charjax_version=__version__,
        data=DataConfig(
            vocab=corpus.vocab.kind,
            train_frac=corpus.train_frac,
            separator=corpus.separator,
            validation=corpus.validation_path,
        ),
        model=model.config,
        train=config,
        corpus=CorpusInfo(
            name=corpus.name,
            paths=corpus.paths,
            sha256=corpus.sha256,
            validation_sha256=corpus.validation_sha256,
            train_characters=len(corpus.train),
            validation_characters=len(corpus.validation),
        ),
        vocab=corpus.vocab,
        fit=FitInfo(replaces="") if fit is None else fit,
    )


def check_same_text(earlier: RunInfo, digests: list[str], run_dir: str | Path) -> None:
    """Checks by digest that the text, and the validation text if there is one, are the ones a run was trained on.

    Raises:
        UserError: the run was trained on different text, or the text has changed since.
    """
    if digests[0] != earlier.corpus.sha256:
        characters = earlier.corpus.train_characters + earlier.corpus.validation_characters
        raise UserError(
            f"{run_dir} was trained on different text ({earlier.corpus.name}, {characters:,} characters); "
            "resume with the original text, or choose another --out"
        )
    if digests != earlier.corpus.digests:
        raise UserError(
            f"{run_dir} was trained with different validation text; "
            "resume with the original text, or choose another --out"
        )


def check_same_run(earlier: RunInfo, now: RunInfo, run_dir: str | Path) -> None:
    """Checks that a run can be resumed with a given configuration.

    Raises:
        UserError: the run has different text, or a different architecture, vocabulary, split, batch_size, seq_len or
            seed.
    """
    check_same_text(earlier, now.corpus.digests, run_dir)
    old, new = _fixed(earlier), _fixed(now)
    for name, value in old.items():
        if new[name] != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{run_dir} was trained with {flag} {value}, not {new[name]}; omit {flag} to resume it, "
                "or choose another --out"
            )
    before, after = earlier.fit.replaces, now.fit.replaces
    if before is not None and before != after:
        had = (
            f"with fit({before}=...); pass the same {before} to resume it"
            if before
            else f"without {after}=...; omit it"
        )
        raise UserError(f"{run_dir} was trained {had}, or choose another --out")
    if earlier.vocab != now.vocab:
        raise UserError(f"{run_dir} was trained with a different vocabulary; choose another --out")


def _fixed(info: RunInfo) -> dict[str, Any]:
    train = dataclasses.asdict(info.train)
    fixed = dataclasses.asdict(info.data) | dataclasses.asdict(info.model)
    # These fields may change: all implementations compute the same result, and digests identify the text.
    for name in ("implementation", "separator", "validation"):
        del fixed[name]
    return fixed | {name: train[name] for name in _FIXED_TRAIN_FIELDS}
