"""Host-side training loop, which dispatches steps, evaluates, saves, and rolls back when training diverges."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from charjax.array_types import Params
from charjax.config import TrainConfig
from charjax.data.corpus import Corpus
from charjax.data.prefetch import Prefetcher
from charjax.distributed.mesh import on_one_device
from charjax.distributed.processes import Council, Votes, from_main, is_main, least_of_all
from charjax.errors import Interrupted, UserError
from charjax.generation.generate import generate_text
from charjax.host.memory import release_unused_memory, room_for_text
from charjax.host.signals import SignalCatcher
from charjax.metrics import Evaluation
from charjax.model import CharLSTM
from charjax.progress.reporter import NullReporter, Reporter
from charjax.runs.metadata import Progress
from charjax.runs.shared_folder import SharedRun
from charjax.train_state import TrainState, abstract_train_state, init_train_state, state_shardings
from charjax.training.evaluate import make_evaluator
from charjax.training.optimizer import make_optimizer, warn_if_rate_rises, with_rate_scale
from charjax.training.plan import StepPlan, training_layout
from charjax.training.rollback import DivergedError, RollbackPolicy, rate_scale
from charjax.training.step import make_train_step
from charjax.training.summary import summary
from charjax.training.throughput import ThroughputMeter

SAMPLE_TEMPERATURE = 0.8

_BY_CALLBACK = "requested by a callback"

# Number of consecutive skipped steps after which training counts as diverged.
SKIPS_TO_ROLL_BACK = 3

Callback = Callable[[Evaluation, TrainState], bool | None]
"""Called after each evaluation with the state, which the next step invalidates; returning True ends training."""

# Compilation and evaluation fragment memory, so each of the first few calls after them returns unused memory to the
# system.
CALLS_TO_SETTLE = 2


class TrainLoop:
    """One training run, from its first step or the latest checkpoint to its last step."""

    def __init__(
        self,
        model: CharLSTM,
        corpus: Corpus,
        config: TrainConfig,
        mesh: Mesh,
        *,
        optimizer: optax.GradientTransformation | optax.Schedule | None,
        start: Params | None,
        reporter: Reporter | None,
        callbacks: Sequence[Callback],
        folder: SharedRun | None,
        signals: SignalCatcher | None,
    ) -> None:
        """Prepares the run.

        Args:
            model: the model.
            corpus: the text.
            config: training configuration.
            mesh: devices to train on.
            optimizer: replaces AdamW or, if it is a schedule, only its learning rate.
            start: initial parameters; None for random initialization.
            reporter: shows progress; None shows nothing.
            callbacks: functions called after each evaluation.
            folder: run folder to save to; None saves nothing.
            signals: tells the loop when to save and exit.
        """
        self.model, self.vocab, self.config, self.mesh = model, corpus.vocab, config, mesh
        self.folder, self.signals, self.callbacks = folder, signals, callbacks
        self.corpus, self.start = corpus, start
        self.reporter = (reporter if is_main() else None) or NullReporter()
        layout = training_layout(corpus, config)
        self.plan = StepPlan.of(config, layout.windows)
        train_bytes, validation_bytes = text_budgets(corpus, config, mesh)
        self.feed = Prefetcher(corpus.train, layout, mesh, budget=train_bytes)
        self.evaluator = make_evaluator(model, corpus.validation, mesh=mesh, budget=validation_bytes)
        if isinstance(optimizer, optax.GradientTransformation):
            self.optimizer = with_rate_scale(optimizer)
        else:
            self.optimizer = make_optimizer(config, self.plan.total_steps, learning_rate=optimizer)
        self._rate_is_configured = optimizer is None
        self.train_step = make_train_step(
            model, self.optimizer, seq_len=config.seq_len, mesh=mesh, microbatches=config.microbatches
        )
        self.council = Council(mesh)
        # Why training ended early; empty if it did not.
        self._stop = ""
        self.rollbacks = RollbackPolicy(config, folder)

    def run(self, *, resume: bool) -> TrainState:
        """Trains to the last step, from the latest checkpoint or the beginning; raises the same errors as `fit`."""
        with self.feed, self.evaluator, contextlib.ExitStack() as at_exit:
            # Compiled in the background while the state is initialized or restored, and saved.
            self._step = at_exit.enter_context(ThreadPoolExecutor(1)).submit(self._lowered_step().compile)
            state = self._resume() if resume else self._begin()
            at_exit.callback(self.reporter.stop)
            if self.progress.step < self.plan.total_steps:
                self.reporter.message(self._summary())
            self._announce()
            return self._train(state)

    def _train(self, state: TrainState) -> TrainState:
        while not self._is_over():
            problem = ""
            try:
                state = self._take_steps(state)
                self._evaluate_if_due(state)
                self._agree()
                self._save_if_due(state)
                self._leave_if_asked(state)
            except DivergedError as error:
                problem = str(error)
            # Outside the except block, whose traceback would keep the old state alive; memory might not hold two.
            if problem:
                del state
                state = self._roll_back(problem)
        if self.folder is not None:
            self.folder.check()
        if self.progress.step < self.plan.total_steps:
            self.reporter.message(self._why_early())
        return state

    def _is_over(self) -> bool:
        """Returns True after the last step, or when a callback or `patience` ends training early."""
        progress, patience = self.progress, self.config.patience
        if patience is not None and progress.best_step is not None and not self._stop:
            without = self.plan.evaluations_since(progress.best_step, progress.step)
            if without >= patience:
                self._stop = f"no lower validation loss in {without} evaluations (patience {patience})"
        return bool(self._stop) or progress.step >= self.plan.total_steps

    def _why_early(self) -> str:
        """Explains why training ended early and, if there is a run folder, what it keeps."""
        progress, patience = self.progress, self._stop != _BY_CALLBACK
        why = f"stopped at step {progress.step} of {self.plan.total_steps}: {self._stop}"
        best = f"best validation loss {progress.best_val_loss:.4f} at step {progress.best_step}"
        if self.folder is None:
            return f"{why}; {best}"
        return f"{why}; {best}, whose model is kept; continue with --resume{' and a higher --patience' * patience}"

    def _begin(self) -> TrainState:
        """Initializes the training state and saves it as the first checkpoint."""
        key, batch_size = jax.random.key(self.config.seed), self.config.batch_size
        state = init_train_state(key, self.model, self.optimizer, batch_size=batch_size, mesh=self.mesh)
        if self.start is not None:
            state = state.replace(params=jax.device_put(self.start, state_shardings(self.mesh).params))
        self._continue_from(Progress(step=0))
        if self.folder is not None:
            self.folder.begin(self.progress)
        self._save(state)
        return state

    def _resume(self) -> TrainState:
        """Restores the training state from the latest checkpoint."""
        assert self.folder is not None  # `open_run` refuses to resume without one
        state, progress, earlier = self.folder.restore(self._abstract_state(), check=self._check_length)
        self._continue_from(progress)
        is_over = progress.step == self.plan.total_steps
        more = "; to train longer, raise --epochs" if is_over else ""
        self.reporter.message(f"resuming at step {progress.step} of {self.plan.total_steps}{more}")
        if is_main() and self._rate_is_configured:
            warn_if_rate_rises(earlier, self.config, self.plan.steps_per_epoch, progress.step)
        return state

    def _check_length(self, progress: Progress) -> None:
        if progress.step > self.plan.total_steps:
            raise UserError(
                f"the run was trained for {progress.step} steps, which is {progress.epoch:.4g} epochs, "
                f"more than --epochs {self.config.epochs:g}; raise --epochs to resume it"
            )

    def _roll_back(self, problem: str) -> TrainState:
        """Restores an earlier state and continues from it with half the learning rate."""
        state, progress = self.rollbacks.go_back(problem, self.progress, self._abstract_state())
        self._continue_from(dataclasses.replace(progress, elapsed_seconds=self.meter.elapsed_seconds))
        self.reporter.stop()
        self.reporter.message(
            f"{problem}: going back to the checkpoint at step {progress.step}, "
            f"with {rate_scale(progress):g} times the learning rate"
        )
        self._announce()
        return state

    def _lowered_step(self) -> jax.stages.Lowered:
        """Traces the step in the caller's thread, because some JAX modes are thread-local."""
        arguments = self._abstract_state(), self.feed.abstract_chunk(), np.int32(1), self.train_step.hyperparameters
        return self.train_step.jitted.lower(*arguments)

    def _summary(self) -> str:
        return summary(self.model, self.corpus, self.config, self.plan, list(self.mesh.devices.flat))

    def _abstract_state(self) -> TrainState:
        return abstract_train_state(self.model, self.optimizer, batch_size=self.config.batch_size, mesh=self.mesh)

    def _continue_from(self, progress: Progress) -> None:
        self.progress = progress
        self.meter = ThroughputMeter(progress, self.config.steps_per_call)
        self.votes = Votes(self.meter.steps_per_call, signum=0, failed=0)
        self._stop = ""

    def _announce(self) -> None:
        chars_per_step = self.config.batch_size * self.config.seq_len
        self.reporter.start(self.plan.total_steps, self.progress.step, chars_per_step, self.config.epochs)

    def _take_steps(self, state: TrainState) -> TrainState:
        """Dispatches one call to the training step and reads the metrics of the previous call."""
        step = self.progress.step
        window = step % self.plan.steps_per_epoch
        to_end_of_chunk = self.feed.end_of_chunk(window) - window
        num_steps = min(self.votes.steps, self.plan.steps_to_pause(step), to_end_of_chunk)
        streams = self.feed.chunk_at(window)
        self.council.cast(self._own_votes())
        self.meter.begin()
        train_step = self.train_step._replace(jitted=self._step.result())
        state, metrics = train_step(state, streams, num_steps, rate_scale(self.progress))
        self._check_skips(self.meter.push(metrics, num_steps))
        if self.meter.calls <= CALLS_TO_SETTLE:
            release_unused_memory()
        step += num_steps
        epoch = step / self.plan.steps_per_epoch
        self.progress = dataclasses.replace(self.progress, step=step, epoch=epoch, val_loss=None)
        self.reporter.update(step, self.meter.latest_loss)
        return state

    def _evaluate_if_due(self, state: TrainState) -> None:
        """Measures the validation loss, generates a sample, and records and reports both."""
        if not self.plan.is_evaluation_due(self.progress.step):
            return
        self._wait_for_device()
        val_loss = self.evaluator(state.params)
        if not math.isfinite(val_loss):
            raise DivergedError(f"the validation loss is {val_loss} at step {self.progress.step}")
        self.rollbacks.evaluation_succeeded()
        evaluation = Evaluation(
            step=self.progress.step,
            epoch=self.progress.epoch,
            train_loss=self.meter.loss,
            val_loss=val_loss,
            chars_per_second=self.meter.chars_per_second,
            elapsed_seconds=self.progress.elapsed_seconds,
            skipped_steps=self.meter.skipped,
            learning_rate=self._learning_rate(),
            grad_norm=self.meter.grad_norm,
            chars_seen=round(self.progress.epoch * len(self.corpus.train)),
        )
        self.meter.restart()
        self.progress = _evaluated(self.progress, val_loss)
        sample = self._sample(state) if self.config.sample_length and is_main() else ""
        if self.folder is not None:
            self.folder.record(evaluation, sample)
        self.reporter.evaluation(evaluation, sample)
        # Called in all processes, although only the main one may have callbacks.
        if from_main(lambda: self._asked_to_stop(evaluation, state)):
            self._stop = _BY_CALLBACK

    def _asked_to_stop(self, evaluation: Evaluation, state: TrainState) -> bool:
        """Calls all callbacks and returns True if any of them returns True."""
        answers = [callback(evaluation, state) for callback in self.callbacks]
        return any(answers)

    def _learning_rate(self) -> float | None:
        """Returns the learning rate of the last step, or None if it is unknown."""
        rate = self.optimizer.rate
        return None if rate is None else float(rate(self.progress.step - 1)) * rate_scale(self.progress)

    def _sample(self, state: TrainState) -> str:
        context, length, seed = self.config.sample_context, self.config.sample_length, self.progress.step
        (text,) = generate_text(
            self.model, state.params, self.vocab, context, seed=seed, length=length, temperature=SAMPLE_TEMPERATURE
        )
        return context + text

    def _own_votes(self) -> Votes:
        return Votes(
            steps=self.meter.steps_per_call if is_main() else 0,
            signum=(self.signals.received if self.signals else None) or 0,
            failed=int(self.folder is not None and self.folder.failure is not None),
        )

    def _agree(self) -> None:
        """Reads the votes of all processes; if one of them has failed, all of them raise its error."""
        self.votes = self.council.read(self._own_votes())
        if self.votes.failed and self.folder is not None:
            self.folder.check()

    def _save_if_due(self, state: TrainState) -> None:
        step, is_last = self.progress.step, self._is_over()
        # While steps are being skipped, the state is not worth going back to; only the last step is saved even then.
        is_due = is_last or (self.plan.is_checkpoint_due(step) and int(state.skipped) == 0)
        if is_due or self.progress.is_best or self.votes.signum:
            self._save(state)

    def _save(self, state: TrainState) -> None:
        """Saves a checkpoint if there is a run folder."""
        if self.folder is None:
            return
        self._wait_for_device()
        if not _is_finite(on_one_device(state.params)):
            raise DivergedError(f"the parameters are not finite at step {self.progress.step}")
        self.folder.save(state, self.progress)

    def _leave_if_asked(self, state: TrainState) -> None:
        if not self.votes.signum:
            return
        where = f"interrupted at step {self.progress.step} of {self.plan.total_steps}"
        if self.folder is None:
            advice = "the exception's state is the training state; to get it: import sys; sys.last_value.state"
            raise Interrupted(self.votes.signum, f"{where}; {advice}", state)
        self.folder.check()
        raise Interrupted(self.votes.signum, f"{where} and saved in {self.folder.path}; continue with --resume")

    def _wait_for_device(self) -> None:
        """Reads the metrics of the last call so that the progress matches the state."""
        self._check_skips(self.meter.flush())
        self.progress = dataclasses.replace(
            self.progress,
            elapsed_seconds=self.meter.elapsed_seconds,
            train_nats=self.meter.nats,
            train_count=self.meter.count,
            train_skipped=self.meter.skipped,
            train_steps=self.meter.steps,
            train_grad_norm=self.meter.grad_norms,
        )

    def _check_skips(self, skipped: int) -> None:
        """Reports the steps skipped by the call whose metrics were read last.

        Raises:
            DivergedError: too many consecutive steps were skipped.
        """
        step = self.progress.step
        if self.meter.skipped_in_a_row >= SKIPS_TO_ROLL_BACK:
            raise DivergedError(
                f"non-finite loss or gradient in {SKIPS_TO_ROLL_BACK} steps in a row, up to step {step}"
            )
        if skipped:
            steps = "a step" if skipped == 1 else f"{skipped} steps"
            self.reporter.message(f"skipped {steps} (now at step {step}): non-finite loss or gradient")


def _evaluated(progress: Progress, val_loss: float) -> Progress:
    """Returns the progress after an evaluation, with the training sums reset and the best step updated."""
    progress = dataclasses.replace(progress, val_loss=val_loss, train_nats=0.0, train_count=0, train_skipped=0)
    progress = dataclasses.replace(progress, train_steps=0, train_grad_norm=0.0)
    if progress.best_val_loss is None or val_loss < progress.best_val_loss:
        return dataclasses.replace(progress, best_step=progress.step, best_val_loss=val_loss)
    return progress


def _is_finite(params: Params) -> bool:
    # Checked on the host, because compiling this would take longer than all the checks of most runs.
    return all(np.isfinite(leaf).all() for leaf in jax.device_get(jax.tree.leaves(params)))


def text_budgets(corpus: Corpus, config: TrainConfig, mesh: Mesh) -> tuple[int | None, int | None]:
    """Returns the memory budgets in bytes for the training and validation text, in proportion to their lengths."""
    memory_mb = config.text_memory_mb
    budget = least_of_all(room_for_text(list(mesh.devices.flat)) if memory_mb is None else memory_mb * 1_000_000)
    if budget is None:
        return None, None
    train = budget * len(corpus.train) // (len(corpus.train) + len(corpus.validation))
    return train, budget - train
