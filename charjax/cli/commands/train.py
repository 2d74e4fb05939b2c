"""`charjax train`: trains a model, or resumes a run.

Its options are declared in `charjax.cli.arguments.TrainCommand` and in the dataclasses of `charjax.config`.
"""

import dataclasses
import functools
import logging
from typing import Any, TypeVar

from charjax.cli.arguments import SweepCommand, TrainCommand
from charjax.cli.output import shell_path
from charjax.cli.startup import exit_on_interrupt
from charjax.cli.trackers import trackers
from charjax.config import DataConfig, ModelConfig, TrainConfig
from charjax.data.corpus import Corpus, Recognize, read_corpus
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import use_all_cores
from charjax.distributed.processes import check_same, from_main, is_main, join_processes, leaving_together
from charjax.host.memory import reuse_memory
from charjax.model import CharLSTM
from charjax.progress.reporter import make_reporter
from charjax.runs.checkpoint_header import read_header
from charjax.runs.compatibility import check_same_text
from charjax.runs.layout import TENSORBOARD
from charjax.runs.metadata import RunInfo
from charjax.runs.model_file import read_info
from charjax.training.fit import fit
from charjax.training.presets import preset

_Config = TypeVar("_Config", DataConfig, ModelConfig, TrainConfig)


def run(command: TrainCommand, given: frozenset[str]) -> None:
    """Trains a model, then prints the command that generates text with it.

    Args:
        command: the arguments.
        given: names of the options that the user set; a resumed run takes the others from its folder.
    """
    reuse_memory()
    use_all_cores()
    if not command.distributed:
        _train(command, given)
        return
    with exit_on_interrupt():
        join_processes(command.coordinator, num_processes=command.num_processes, process_id=command.process_id)
    with leaving_together():
        if not is_main():
            logging.getLogger("charjax").setLevel(logging.WARNING)
        _train(command, given)


def _train(command: TrainCommand, given: frozenset[str]) -> None:
    check_same({"--resume": command.resume})
    data, model_config, train_config = command.data, command.model, command.train
    recognize = base = None
    if command.resume:
        info = RunInfo.from_dict(from_main(lambda: _saved_info(command)))
        recognize, base = functools.partial(check_same_text, info, run_dir=command.out), info.vocab
        data = _override(info.data, data, given)
        model_config = _override(info.model, model_config, given)
        train_config = _override(info.train, train_config, given)
        # A run that logged to TensorBoard before it was interrupted continues to do so.
        command = dataclasses.replace(command, tensorboard=command.tensorboard or (command.out / TENSORBOARD).is_dir())
    elif command.init_from is not None and "vocab" not in given:
        # The model keeps all of its characters, even those that are not in the new text.
        base = read_info(command.init_from).vocab
    model, corpus, train_config = prepare(command, data, model_config, train_config, given, recognize, base)
    fit(
        model,
        corpus,
        train_config,
        out=command.out,
        resume=command.resume,
        init_from=command.init_from,
        progress=False,
        reporter=None if command.quiet else make_reporter(),
        trackers=trackers(command.tensorboard, command.tracker, command.out) if is_main() else (),
    )
    if is_main() and not command.quiet:
        out = shell_path(command.out)
        print(f"saved in {out}; to generate text: charjax sample {out}", flush=True)


def prepare(
    command: TrainCommand | SweepCommand,
    data: DataConfig,
    model_config: ModelConfig,
    train_config: TrainConfig,
    given: frozenset[str],
    recognize: Recognize | None = None,
    base: Vocab | None = None,
) -> tuple[CharLSTM, Corpus, TrainConfig]:
    """Reads the text and applies the command's preset, if any; the options named in `given` override it."""
    memory = train_config.text_memory_mb
    corpus = read_corpus(command.text, data, data.vocab, memory_mb=memory, recognize=recognize, base=base)
    if isinstance(command, TrainCommand) and command.init_from is not None:
        size = read_info(command.init_from).model
        unasked = {"hidden_dim", "hidden_layers"} - given
        model_config = dataclasses.replace(model_config, **{name: getattr(size, name) for name in unasked})
        given |= unasked
    if command.preset is not None:
        options = vars(model_config) | vars(train_config)
        own = {name: value for name, value in options.items() if name in given}
        model_config, train_config = preset(command.preset, len(corpus.train), **own)
    return CharLSTM.from_config(model_config, corpus.vocab.size), corpus, train_config


def _saved_info(command: TrainCommand) -> dict[str, Any]:
    return read_header(command.out, quiet=True).info.to_dict()


def _override(saved: _Config, asked: _Config, given: frozenset[str]) -> _Config:
    """Returns the saved configuration, updated with the options that the user set this time."""
    names = {field.name for field in dataclasses.fields(saved)} & given
    return dataclasses.replace(saved, **{name: getattr(asked, name) for name in names})
