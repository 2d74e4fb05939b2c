"""Public function `fit`, which checks its arguments, opens the run folder and trains."""

import contextlib
import dataclasses
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import optax
from jax.sharding import Mesh

from charjax.array_types import Params
from charjax.config import ADAMW_FIELDS, FitOptions, TrainConfig
from charjax.data.batching import check_fits
from charjax.data.corpus import Corpus, check_corpus
from charjax.data.vocab import encode_context
from charjax.distributed.mesh import check_divides, checked_mesh, make_training_mesh, use_all_cores
from charjax.distributed.processes import check_same, together
from charjax.errors import UserError, check_type, checked_checkpoint_folder, checked_path, in_short
from charjax.generation.blocks import BLOCK
from charjax.host.cpu import keep_lapack_on_one_thread
from charjax.host.jax_modes import in_default_modes
from charjax.host.memory import reuse_memory
from charjax.host.signals import SignalCatcher
from charjax.memory_budget import check_room_to_sample, check_room_to_train
from charjax.model import CharLSTM, check_serves
from charjax.progress.reporter import Both, Reporter, make_reporter
from charjax.progress.tracker import Tracker, values_to_track
from charjax.runs.compatibility import describe_run
from charjax.runs.metadata import FitInfo, RunInfo
from charjax.runs.shared_folder import open_run
from charjax.train_state import TrainState, check_optimizer
from charjax.training.initial_params import initial_params
from charjax.training.loop import Callback, TrainLoop
from charjax.training.plan import steps_of_run, training_layout
from charjax.training.presets import PresetName, preset

MOST_STEPS = 2**31 - 1
_OPTIONS = (
    "out", "resume", "init_from", "mesh", "learning_rate", "optimizer", "progress", "reporter", "callbacks", "trackers",
)  # fmt: skip


@in_default_modes
def fit(
    model: CharLSTM,
    corpus: Corpus,
    config: TrainConfig | PresetName | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    init_from: str | Path | None = None,
    mesh: Mesh | None = None,
    learning_rate: float | optax.Schedule | None = None,
    optimizer: optax.GradientTransformation | None = None,
    progress: bool | None = None,
    reporter: Reporter | None = None,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    **overrides: Unpack[FitOptions],
) -> TrainState:
    """Trains a model on the text of a corpus.

    Args:
        model: the model; its vocab_size must match the corpus.
        corpus: the text.
        config: training configuration, `TrainConfig()` by default, or the name of a preset to use (see `preset`).
        out: run folder for checkpoints, metrics.jsonl and samples.txt; None writes nothing to disk.
        resume: continue from the latest checkpoint in `out`. With the same configuration, the result is bit-for-bit
            identical to that of an uninterrupted run.
        init_from: folder of another run or model of the same size, whose weights training starts from. Its vocabulary
            may differ: known characters keep their weights, and new ones get fresh weights. Ignored with `resume`.
        mesh: devices to use; all by default. On CPU, each core that gets at least 8 sequences is a device, unless
            JAX was already in use.
        learning_rate: peak learning rate, or an optax schedule (step -> rate) to use instead of `config.schedule`.
        optimizer: any optax transformation, to use instead of AdamW and its settings in `config`. To resume the run,
            pass it again.
        progress: show a summary of the run and then its progress on standard error: a live bar in a terminal or a
            notebook, plain lines elsewhere. By default it is shown unless a reporter is given; with True, it is shown
            beside what the reporter does.
        reporter: is told the progress, to keep it (`History`) or to show it in a custom way; see `Reporter`.
        callbacks: functions that are called after each evaluation with the `Evaluation` and the state, which the next
            step invalidates. If any returns True, training ends. With multiple processes, only the main one calls them.
        trackers: objects that log the metrics of each evaluation elsewhere; see `Tracker`. With multiple processes,
            only the main one calls them.
        **overrides: any other `TrainConfig` fields by name, e.g. batch_size=32.

    Returns:
        The training state after the last step. The run folder also keeps the best one.

    Raises:
        TypeError: `overrides` contains an unknown option; the message suggests the closest match.
        UserError: an argument has the wrong type, the text is too short, the batch cannot be split over the devices,
            there is not enough memory, the run folder is in use or does not match, `init_from` is not a model of this
            size, or the loss stays non-finite even after rolling back with lower learning rates (without `out`, there
            are no rollbacks).
        Interrupted: on Ctrl-C (SIGINT) or, with `out`, SIGTERM or SIGHUP. With `out`, a checkpoint has been saved;
            without it, the exception's `state` is the training state after the last step.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Corpus, fit, make_mesh
        >>> corpus = Corpus.from_text("a flat white, please. " * 20)
        >>> model = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1)
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> state = fit(model, corpus, mesh=mesh, progress=False, batch_size=4, seq_len=20, epochs=2, sample_length=0)
        >>> int(state.step)
        10
    """
    rate = {} if learning_rate is None or callable(learning_rate) else {"learning_rate": learning_rate}
    given: dict[str, Any] = dict(overrides) | rate
    config = configured("fit", corpus, config, given, _OPTIONS)
    how = _checked_optimizer(optimizer, learning_rate, given)
    _check_paths(out, init_from)
    reporter = chosen_reporter(reporter, progress=progress)
    called = _checked_callbacks(callbacks, trackers)
    reuse_memory()
    use_all_cores()
    info = describe_run(model, corpus, config, _described(how))
    _check_all_processes_agree(info, resume=resume, out=out, init_from=init_from)
    mesh = make_training_mesh(config.batch_size, config.microbatches) if mesh is None else checked_mesh(mesh)
    keep_lapack_on_one_thread(mesh.devices.flat[0].platform)
    start = None
    with together():
        _check(model, corpus, config, mesh)
        if init_from is not None and not resume:
            start, info = _start_from(init_from, model, info)
    with contextlib.ExitStack() as stack:
        # Without a folder to save to, other signals end training as they would any other program.
        signals = stack.enter_context(SignalCatcher() if out is not None else SignalCatcher((signal.SIGINT,)))
        folder = stack.enter_context(open_run(out, info, resume=resume))
        return TrainLoop(
            model,
            corpus,
            config,
            mesh,
            optimizer=how,
            start=start,
            reporter=reporter,
            callbacks=called,
            folder=folder,
            signals=signals,
        ).run(resume=resume)


def _check_all_processes_agree(info: RunInfo, *, resume: bool, **folders: str | Path | None) -> None:
    """Checks that `fit` was called with the same arguments in all processes; raises UserError otherwise."""
    settings = dataclasses.asdict(info.data) | dataclasses.asdict(info.model) | dataclasses.asdict(info.train)
    # Machines may have different amounts of memory.
    del settings["text_memory_mb"]
    paths = {name: path and os.path.realpath(path) for name, path in folders.items()}
    check_same(settings | {"resume": resume} | paths)


def configured(
    function: str,
    corpus: Corpus,
    config: TrainConfig | PresetName | None,
    overrides: dict[str, Any],
    others: Sequence[str],
) -> TrainConfig:
    """Returns the configuration passed to `fit` or `sweep`, with the overrides applied.

    Args:
        function: name of the function that was called.
        corpus: the text.
        config: its `config` argument.
        overrides: its keyword arguments that are fields of the configuration.
        others: names of its other keyword arguments.

    Raises:
        UserError: the configuration is not a `TrainConfig`, or there is no such preset.
        TypeError: an override is not a field, as for any unknown keyword argument.
    """
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in overrides:
        if name not in names:
            nearest = difflib.get_close_matches(name, [*names, *others], n=1)
            raise TypeError(f"{function} has no option {name!r}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    if isinstance(config, str):
        check_corpus(corpus)
        return preset(config, len(corpus.train), **overrides).train
    config = TrainConfig() if config is None else config
    check_type("config", config, TrainConfig, "e.g. TrainConfig(epochs=5), or pass its fields by name")
    return dataclasses.replace(config, **overrides)


def chosen_reporter(reporter: Any, *, progress: bool | None) -> Reporter | None:
    """Returns the reporter passed in and, if progress is to be shown, one for standard error.

    Args:
        reporter: a reporter or None.
        progress: whether to show progress on standard error; None shows it if there is no reporter.

    Raises:
        UserError: the argument is not a reporter.
    """
    if reporter is None:
        return None if progress is False else make_reporter(sys.stderr)
    if isinstance(reporter, type) or not hasattr(reporter, "evaluation"):
        raise UserError(f"reporter must be a Reporter, e.g. History(), not {in_short(reporter)}")
    found: Reporter = reporter
    return Both(found, make_reporter(sys.stderr)) if progress else found


def _checked_optimizer(
    optimizer: Any, learning_rate: Any, given: dict[str, Any]
) -> optax.GradientTransformation | optax.Schedule | None:
    """Returns the optimizer or schedule passed to `fit`, or None to use the configured ones.

    Raises:
        UserError: the optimizer is not an optax transformation, or AdamW settings were passed with it.
    """
    if optimizer is None:
        return learning_rate if callable(learning_rate) else None
    check_optimizer(optimizer)
    unused = [name for name in ADAMW_FIELDS if name in given]
    if callable(learning_rate):
        unused.append("learning_rate")
    if unused:
        raise UserError(f"{unused[0]} is an AdamW setting, but optimizer replaces AdamW; pass only one of the two")
    return optimizer


def _described(how: optax.GradientTransformation | optax.Schedule | None) -> FitInfo:
    """Returns what the run is trained with besides its options."""
    if how is None:
        return FitInfo(replaces="")
    return FitInfo(replaces="optimizer" if isinstance(how, optax.GradientTransformation) else "learning_rate")


def _start_from(folder: str | Path, model: CharLSTM, info: RunInfo) -> tuple[Params, RunInfo]:
    """Returns the parameters to start from, adapted from another model, and the run's configuration, which names it."""
    start, step = initial_params(folder, model, info.vocab, seed=info.train.seed)
    fit = dataclasses.replace(info.fit, init_from=os.path.abspath(folder), init_step=step)
    return start, dataclasses.replace(info, fit=fit)


def _check_paths(out: Any, init_from: Any) -> None:
    if out is not None:
        checked_checkpoint_folder("out", out)
    if init_from is not None:
        checked_path("init_from", init_from)


def _checked_callbacks(callbacks: Any, trackers: Any) -> list[Callback]:
    """Returns the callbacks plus one that calls each tracker; raises UserError if either argument is invalid."""
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise UserError(f"callbacks must be a list of functions, not {in_short(callbacks)}")
    if not isinstance(trackers, Sequence) or not all(callable(getattr(one, "log", None)) for one in trackers):
        raise UserError(f"trackers must be a list of Trackers, not {in_short(trackers)}")
    return [*callbacks, *map(_calling, trackers)]


def _calling(tracker: Tracker) -> Callback:
    return lambda evaluation, _: tracker.log(evaluation.step, values_to_track(evaluation))


def check_problem(model: CharLSTM, corpus: Corpus, config: TrainConfig, mesh: Mesh) -> None:
    """Checks the model, the text and the split of the batch over the mesh; raises the same errors as `fit`."""
    check_serves(model)
    check_divides(config.batch_size, mesh, config.microbatches)
    check_fits(len(corpus.train), batch_size=config.batch_size, seq_len=config.seq_len)
    steps_per_epoch = training_layout(corpus, config).windows
    total = steps_of_run(config, steps_per_epoch)
    if total > MOST_STEPS:  # the devices count steps in int32
        raise UserError(
            f"{config.epochs:.12g} epochs is {total:,} steps, which exceeds the limit of {MOST_STEPS:,}; "
            f"lower --epochs to at most {MOST_STEPS // steps_per_epoch}"
        )


def _check(model: CharLSTM, corpus: Corpus, config: TrainConfig, mesh: Mesh) -> None:
    """Checks all arguments before anything is written or put on a device; raises the same errors as `fit`."""
    check_problem(model, corpus, config, mesh)
    context = encode_context(corpus.vocab, config.sample_context)
    check_room_to_train(model.config, config, model.vocab_size, list(mesh.devices.flat))
    check_room_to_sample(
        model.config,
        model.vocab_size,
        num_samples=1,
        length=config.sample_length,
        context_length=len(context),
        block=BLOCK,
        flags="--sample-length",
    )
