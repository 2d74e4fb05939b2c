"""Public function `sweep`, which trains models with different rates, decays and seeds together and keeps the best."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np
from jax.sharding import Mesh

from charjax.config import ModelConfig, SweepOptions, TrainConfig
from charjax.data.corpus import Corpus
from charjax.distributed.mesh import checked_mesh, make_mesh, use_all_cores
from charjax.errors import Interrupted, UserError, checked_whole
from charjax.host.cpu import keep_lapack_on_one_thread
from charjax.host.jax_modes import in_default_modes
from charjax.host.memory import reuse_memory
from charjax.host.signals import SignalCatcher
from charjax.memory_budget import check_room_to_sweep
from charjax.metrics import Evaluation
from charjax.model import CharLSTM
from charjax.progress.reporter import NullReporter, Reporter
from charjax.runs.compatibility import describe_run
from charjax.runs.layout import METRICS, PICTURE, SWEEP
from charjax.runs.logs import MetricsLog
from charjax.runs.metadata import Progress
from charjax.runs.model_file import write_info, write_parameters
from charjax.runs.new_folder import new_folder, writing
from charjax.training.fit import check_problem, chosen_reporter, configured
from charjax.training.loop import SKIPS_TO_ROLL_BACK
from charjax.training.population import Population, Setting, members_at_once
from charjax.training.presets import PresetName
from charjax.training.step import TrainMetrics
from charjax.training.sweep_result import SweepMember, SweepResult
from charjax.training.throughput import ThroughputMeter

Values = float | Sequence[float] | None
_OPTIONS = ("learning_rate", "dropout", "weight_decay", "seeds", "out", "mesh", "progress", "reporter")


@in_default_modes
def sweep(
    model: CharLSTM,
    corpus: Corpus,
    config: TrainConfig | PresetName | None = None,
    *,
    learning_rate: Values = None,
    dropout: Values = None,
    weight_decay: Values = None,
    seeds: int = 1,
    out: str | Path | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    reporter: Reporter | None = None,
    **overrides: Unpack[SweepOptions],
) -> SweepResult:
    """Trains a model with every combination of settings and multiple seeds, in one compiled program.

    Each member ends up with the parameters that `fit` would give it with its settings, up to rounding. The members are
    distributed over the devices; on CPU, each core is a device. A member whose loss stays non-finite is reported as
    diverged, and the others continue. A sweep cannot be resumed.

    Args:
        model: the model; its vocab_size must match the corpus.
        corpus: the text.
        config: training configuration, as for `fit`; its settings for checkpoints, samples and patience are
            ignored.
        learning_rate: one or more peak learning rates; by default the one in `config`.
        dropout: one or more dropout rates; by default the model's.
        weight_decay: one or more weight decays; by default the one in `config`.
        seeds: number of members per combination, with the seeds `config.seed`, `config.seed` + 1 and so on.
        out: new folder for the best member, as a run that `load_model` accepts, together with sweep.json, which
            contains all evaluations, and sweep.svg, a plot; None writes nothing to disk.
        mesh: devices to use; all by default.
        progress: show progress as `fit` does, with the best member's loss at each evaluation.
        reporter: is told the progress, as by `fit`.
        **overrides: any other `TrainConfig` fields by name, e.g. batch_size=32.

    Returns:
        The members with their evaluations, and the model and parameters of the best one; `table()` shows the mean and
        spread over the seeds.

    Raises:
        TypeError: `overrides` contains an unknown option.
        UserError: as for `fit`, or a setting has no values or duplicate ones, all members diverged, or `out` is not
            empty.
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived while training with `out`; nothing is kept.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, Corpus, make_mesh, sweep
        >>> corpus = Corpus.from_text("a flat white, please. " * 20)
        >>> model = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1)
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> rates = [0.001, 0.03]
        >>> result = sweep(model, corpus, learning_rate=rates, seeds=2, mesh=mesh, batch_size=4, seq_len=20, epochs=2)
        >>> result.best.setting.learning_rate, len(result.members)
        (0.03, 4)
    """
    config = configured("sweep", corpus, config, dict(overrides), _OPTIONS)
    reporter = chosen_reporter(reporter, progress=progress)
    reuse_memory()
    use_all_cores()
    describe_run(model, corpus, config)  # checks that they belong together
    if jax.process_count() > 1:
        raise NotImplementedError("a sweep runs in one process; start one per process, each with some of the values")
    devices = list(checked_mesh(mesh).devices.flat)
    check_problem(model, corpus, config, make_mesh(devices[:1]))
    swept = [
        _values("learning_rate", learning_rate, config),
        _values("dropout", dropout, model.config),
        _values("weight_decay", weight_decay, config),
    ]
    seeds = checked_whole("seeds", seeds)
    _check_room(model, config, devices, math.prod(map(len, swept)) * seeds)
    dataclasses.replace(config, seed=config.seed + seeds - 1)  # checks the last seed
    settings = [
        Setting(rate, drop, decay, config.seed + n)
        for rate, drop, decay in itertools.product(*swept)
        for n in range(seeds)
    ]
    keep_lapack_on_one_thread(devices[0].platform)
    with contextlib.ExitStack() as stack:
        # Without a folder, a signal ends the sweep as it would any other program.
        signals = stack.enter_context(SignalCatcher()) if out is not None else None
        folder = stack.enter_context(new_folder(out)) if out is not None else None
        population = stack.enter_context(Population(model, corpus, config, settings, devices))
        result = _SweepLoop(model, config, population, settings, reporter or NullReporter(), signals).run()
        if folder is not None and out is not None:
            with writing(out):
                _save(folder, result, corpus, config)
    return result


class _SweepLoop:
    """Host-side loop that trains all members from the first step to the last."""

    def __init__(
        self,
        model: CharLSTM,
        config: TrainConfig,
        population: Population,
        settings: Sequence[Setting],
        reporter: Reporter,
        signals: SignalCatcher | None,
    ) -> None:
        self.model, self.config, self.population, self.settings = model, config, population, settings
        self.reporter, self.signals, self.plan = reporter, signals, population.plan
        self.step = 0
        self.meter = ThroughputMeter(Progress(step=0), config.steps_per_call)
        self.evaluations: list[list[Evaluation]] = [[] for _ in settings]
        self.diverged = [False] * len(settings)
        self._forget()

    def run(self) -> SweepResult:
        """Trains to the last step; raises the same errors as `sweep`."""
        chars_per_step = len(self.settings) * self.config.batch_size * self.config.seq_len
        self.reporter.start(self.plan.total_steps, 0, chars_per_step, self.config.epochs)
        try:
            while self.step < self.plan.total_steps:
                self._take_steps()
                if self.plan.is_evaluation_due(self.step):
                    self._evaluate()
                self._leave_if_asked()
        finally:
            self.reporter.stop()
        return self._result()

    def _take_steps(self) -> None:
        self.meter.begin()
        count, metrics = self.population.take_steps(self.step, self.meter.steps_per_call)
        self.meter.push(_total(metrics), count)
        self.meter.flush()
        self.step += count
        self.nats += metrics.nats
        self.chars += metrics.chars
        self.skipped += metrics.skipped
        for member, skipped in enumerate(metrics.skipped_in_a_row):
            if skipped >= SKIPS_TO_ROLL_BACK:
                self._diverge(member, f"loss or gradient not finite in {SKIPS_TO_ROLL_BACK} steps in a row")
        self.reporter.update(self.step, self.meter.latest_loss)

    def _evaluate(self) -> None:
        """Measures the validation loss of all members and keeps the parameters of those that improved."""
        losses, improved = self.population.evaluate(), []
        for member, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._diverge(member, f"the validation loss is {loss}")
            so_far = [evaluation.val_loss for evaluation in self.evaluations[member]]
            improved.append(not self.diverged[member] and loss < min(so_far, default=math.inf))
            if not self.diverged[member]:
                self.evaluations[member].append(self._evaluation(member, float(loss)))
        self.population.keep(improved)
        self.meter.restart()
        self._forget()
        latest = [of_one[-1] for of_one, diverged in zip(self.evaluations, self.diverged, strict=True) if not diverged]
        self.reporter.evaluation(min(latest, key=lambda evaluation: evaluation.val_loss))

    def _evaluation(self, member: int, loss: float) -> Evaluation:
        speed = self.meter.chars_per_second
        return Evaluation(
            step=self.step,
            epoch=self.step / self.plan.steps_per_epoch,
            train_loss=float(self.nats[member] / self.chars[member]) if self.chars[member] else math.nan,
            val_loss=loss,
            chars_per_second=speed and speed / len(self.settings),
            elapsed_seconds=self.meter.elapsed_seconds,
            skipped_steps=int(self.skipped[member]),
        )

    def _forget(self) -> None:
        """Resets the sums since the last evaluation."""
        self.nats = np.zeros(len(self.settings), np.float64)
        self.chars, self.skipped = np.zeros((2, len(self.settings)), np.int64)

    def _diverge(self, member: int, reason: str) -> None:
        """Reports that a member has diverged.

        Raises:
            UserError: all members have now diverged.
        """
        if self.diverged[member]:
            return
        self.diverged[member] = True
        names = [name.replace("_", " ") for name in Setting._fields]
        setting = ", ".join(f"{name} {value:.10g}" for name, value in zip(names, self.settings[member], strict=True))
        self.reporter.message(f"{setting}: {reason}, up to step {self.step}; the others continue")
        if all(self.diverged):
            raise UserError(
                f"all models diverged, the last one up to step {self.step} ({reason}); try lower learning rates"
            )

    def _leave_if_asked(self) -> None:
        if self.signals is not None and self.signals.received:
            raise Interrupted(
                self.signals.received,
                f"interrupted at step {self.step} of {self.plan.total_steps}; nothing was kept, "
                "since a sweep cannot be resumed",
            )

    def _result(self) -> SweepResult:
        members = tuple(
            SweepMember(setting=setting, evaluations=tuple(evaluations), diverged=diverged)
            for setting, evaluations, diverged in zip(self.settings, self.evaluations, self.diverged, strict=True)
        )
        best = min(range(len(members)), key=lambda member: members[member].val_loss)
        model = self.model.clone(dropout=self.settings[best].dropout)
        return SweepResult(model=model, params=self.population.best(best), members=members)


def _total(metrics: TrainMetrics) -> TrainMetrics:
    """Returns the sums over the members; the sum of `skipped_in_a_row` is never read."""
    return TrainMetrics(*(np.sum(part, dtype=np.float64) for part in metrics))  # type: ignore[arg-type]


def _values(name: str, given: Values, config: TrainConfig | ModelConfig) -> list[float]:
    """Returns the values of a setting: those passed in, checked by its configuration class, or the configured one."""
    found: Any = getattr(config, name) if given is None else given
    listed = [found] if np.ndim(found) == 0 else list(found)
    if not listed:
        raise UserError(f"{name} must have at least one value, not an empty list")
    values = [float(getattr(dataclasses.replace(config, **{name: value}), name)) for value in listed]
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{name} contains {value:.10g} more than once; remove the duplicate")
    return values


def _check_room(model: CharLSTM, config: TrainConfig, devices: Sequence[jax.Device], members: int) -> None:
    at_once = members_at_once(-(-members // len(devices)), devices[0].platform)
    check_room_to_sweep(model.config, config, model.vocab_size, devices, members=members, at_once=at_once)


def _save(folder: Path, result: SweepResult, corpus: Corpus, config: TrainConfig) -> None:
    """Writes the best member as a run, along with the measurements of all members."""
    member = result.best
    best = min(member.evaluations, key=lambda evaluation: evaluation.val_loss)
    own = {name: value for name, value in member.setting._asdict().items() if name != "dropout"}
    progress = Progress(
        step=best.step,
        epoch=best.epoch,
        val_loss=best.val_loss,
        best_step=best.step,
        best_val_loss=best.val_loss,
        elapsed_seconds=best.elapsed_seconds,
    )
    write_info(folder, describe_run(result.model, corpus, dataclasses.replace(config, **own)))
    with MetricsLog(folder / METRICS) as log:
        for evaluation in member.evaluations:
            log.append(evaluation)
    for name, text in ((SWEEP, result.to_json()), (PICTURE, result.picture())):
        (folder / name).write_text(text, encoding="utf-8")
    write_parameters(folder, result.params, progress)
