"""The loop on the host: calls of the training step, evaluation, checkpoints, rollback."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from charjax.array_types import Array, Params
from charjax.config import TrainConfig
from charjax.data.batching import SequenceLayout
from charjax.data.corpus import Corpus
from charjax.data.prefetch import Prefetcher
from charjax.distributed.mesh import on_one_device
from charjax.distributed.processes import Council, Votes, is_main, least_of_all, together
from charjax.errors import Interrupted, UserError
from charjax.generation.generate import generate_text
from charjax.host.memory import release_unused_memory, room_for_text
from charjax.host.signals import SignalCatcher
from charjax.metrics import Evaluation
from charjax.model import CharLSTM
from charjax.progress.reporter import NullReporter, Reporter
from charjax.runs.metadata import Progress
from charjax.runs.shared_folder import SharedRun
from charjax.train_state import TrainState, abstract_train_state, init_train_state
from charjax.training.evaluate import make_evaluator
from charjax.training.optimizer import make_optimizer
from charjax.training.step import make_train_step
from charjax.training.throughput import Tally

SAMPLE_TEMPERATURE = 0.8


# Calls after compilation or evaluation, whose memory lies otherwise than training's, that end by tidying up.
CALLS_TO_SETTLE = 2


# Steps in a row whose loss or gradient is not finite, at which a run goes back, and how often it does.
SKIPS_TO_ROLL_BACK = 3


MOST_ROLLBACKS = 5


def device_layout(corpus: Corpus, config: TrainConfig) -> SequenceLayout:
    """Returns how the training text is cut into sequences and windows."""
    return SequenceLayout.of(len(corpus.train), batch_size=config.batch_size, seq_len=config.seq_len)


class _DivergedError(Exception):
    """Numbers that are not finite; the message says which, and when."""


class TrainLoop:
    """One training run: what stays the same through it, and how far it has come."""

    def __init__(
        self,
        model: CharLSTM,
        corpus: Corpus,
        config: TrainConfig,
        mesh: Mesh,
        reporter: Reporter | None,
        folder: SharedRun | None,
        signals: SignalCatcher | None,
        *,
        resume: bool,
    ) -> None:
        self.model, self.vocab, self.config, self.mesh = model, corpus.vocab, config, mesh
        self.folder, self.signals, self.resume = folder, signals, resume
        self.reporter = (reporter if is_main() else None) or NullReporter()
        layout = device_layout(corpus, config)
        memory_mb = config.text_memory_mb
        budget = room_for_text(list(mesh.devices.flat)) if memory_mb is None else memory_mb * 1_000_000
        budgets = _share(least_of_all(budget), corpus)
        self.feed = Prefetcher(corpus.train, layout, mesh, budget=budgets[0])
        self.evaluator = make_evaluator(model, corpus.validation, mesh=mesh, budget=budgets[1])
        self.steps_per_epoch = layout.windows
        self.total_steps = config.epochs * self.steps_per_epoch
        self.eval_every = config.eval_every or self.steps_per_epoch
        self.checkpoint_every = config.checkpoint_every or self.eval_every
        self.progress = Progress(step=0)
        self.restored_step: int | None = None  # by the last rollback, if no evaluation went well since
        self.council = Council(mesh)
        self._make_train_step()

    def run(self) -> TrainState:
        """Trains from where the run folder stands to the last step."""
        with self.feed, self.evaluator:
            return self._run()

    def _run(self) -> TrainState:
        state = self._begin()
        self._tell_start()
        try:
            while self.progress.step < self.total_steps:
                reason = ""
                try:
                    state = self._take_call(state)
                except _DivergedError as error:
                    reason = str(error)
                # Not while the exception holds on to the state that it came from: there may not be room for another.
                if reason:
                    del state
                    state = self._roll_back(reason)
            if self.folder is not None:
                self.folder.check()
        finally:
            self.reporter.stop()
        return state

    def _tell_start(self) -> None:
        chars_per_step = self.config.batch_size * self.config.seq_len
        self.reporter.start(self.total_steps, self.progress.step, chars_per_step, self.config.epochs)

    def _make_train_step(self) -> None:
        """Makes the optimizer and the step, with the learning rate that rollbacks have left."""
        config = self.config
        self.optimizer = make_optimizer(config, self.total_steps, rate_scale=0.5**self.progress.rollbacks)
        self.train_step = make_train_step(
            self.model, self.optimizer, seq_len=config.seq_len, mesh=self.mesh, microbatches=config.microbatches
        )

    def _take_call(self, state: TrainState) -> TrainState:
        """Takes the steps of one call, and does what is due after it."""
        state = self._advance(state)
        if self._is_due(self.eval_every):
            self._evaluate(state)
        self.votes = self.council.read(self._own_votes())
        if self.votes.failed and self.folder is not None:
            self.folder.check()
        signum = self.votes.signum
        if self.progress.is_best or signum or (self._is_due(self.checkpoint_every) and self._goes_well(state)):
            self._save(state)
        if signum:
            self._leave(signum)
        return state

    def _begin(self) -> TrainState:
        """The state to start from: the run folder's latest, or a fresh one, which is saved at once."""
        if self.folder is not None and self.resume:
            state, self.progress = self.folder.restore(self._abstract())
            with together():
                self._check_goes_on()
            if self.progress.rollbacks:
                self._make_train_step()
            self.reporter.message(f"resuming at step {self.progress.step} of {self.total_steps}")
        else:
            state = init_train_state(
                jax.random.key(self.config.seed),
                self.model,
                self.optimizer,
                batch_size=self.config.batch_size,
                mesh=self.mesh,
            )
        self.started = time.monotonic() - self.progress.elapsed_seconds
        self._begin_tally()
        if self.folder is not None and not self.resume:
            self.folder.begin(self.progress)
            self._save(state)
        return state

    def _begin_tally(self) -> None:
        self.tally = Tally(
            steps_per_call=self.config.steps_per_call,
            nats=self.progress.train_nats,
            count=self.progress.train_count,
            skipped=self.progress.train_skipped,
        )
        self.votes = Votes(self.tally.steps_per_call, 0, 0)
        self.calls_to_settle = CALLS_TO_SETTLE

    def _abstract(self) -> TrainState:
        return abstract_train_state(self.model, self.optimizer, batch_size=self.config.batch_size, mesh=self.mesh)

    def _roll_back(self, reason: str) -> TrainState:
        """Goes back to a good checkpoint, with half the learning rate.

        That is the latest one; where that led astray before any evaluation went well, the best one, which was good when
        it was evaluated, or before the first evaluation the one before it. A process killed before its next save starts
        from that checkpoint as well, with the rate that is saved there, and may go back once more.

        Raises:
            UserError: there are no checkpoints, or it has helped too seldom.
        """
        rollbacks = self.progress.rollbacks + 1
        advice = f"try a lower --learning-rate (it is {self.config.learning_rate:g}) or a lower --clip-norm"
        with together():
            if self.folder is None:
                raise UserError(f"{reason}; {advice}")
            kept = f"{self.folder.path} keeps the checkpoint before it"
            if rollbacks > MOST_ROLLBACKS:
                raise UserError(f"{reason}, after {MOST_ROLLBACKS} rollbacks; {kept}; {advice}")
        up_to = None
        if self.restored_step is not None:
            best_step = self.progress.best_step
            up_to = self.restored_step - 1 if best_step is None else best_step
        state, progress = self.folder.restore(self._abstract(), up_to=up_to)
        # Counted anew: what led to the checkpoint being of a skipped step is told and done with.
        state = state.replace(skipped=jnp.zeros_like(state.skipped))  # type: ignore[attr-defined]
        self.restored_step = progress.step
        elapsed_seconds = time.monotonic() - self.started
        self.progress = dataclasses.replace(progress, rollbacks=rollbacks, elapsed_seconds=elapsed_seconds)
        self._make_train_step()
        self._begin_tally()
        self.reporter.stop()
        where = f"the checkpoint of step {progress.step}"
        self.reporter.message(f"{reason}: going back to {where}, with {0.5**rollbacks:g} of the learning rate")
        self._tell_start()
        return state

    def _check_goes_on(self) -> None:
        if self.progress.step > self.total_steps:
            raise UserError(
                f"the run has been trained for {self.progress.step} steps, which is {self.progress.epoch:.4g} epochs, "
                f"more than --epochs {self.config.epochs}; give at least as many to resume"
            )

    def _advance(self, state: TrainState) -> TrainState:
        """Dispatches one call and reads the metrics of the one before."""
        step = self.progress.step
        window = step % self.steps_per_epoch
        to_pause = min(every - step % every for every in (self.eval_every, self.checkpoint_every))
        to_end = min(self.total_steps - step, self.feed.end_of_chunk(window) - window)
        num_steps = min(self.votes.steps, to_pause, to_end)
        streams = self.feed.chunk_at(window)
        self.council.cast(self._own_votes())
        self.tally.begin()
        state, metrics = self.train_step(state, streams, num_steps)
        skipped = self.tally.skipped
        self.tally.push(metrics, num_steps)
        self._check_skips(self.tally.skipped - skipped, step)
        if self.calls_to_settle:
            self.calls_to_settle -= 1
            release_unused_memory()
        step += num_steps
        self.progress = dataclasses.replace(self.progress, step=step, epoch=step / self.steps_per_epoch, val_loss=None)
        self.reporter.update(step, self.tally.latest_loss)
        return state

    def _own_votes(self) -> Votes:
        return Votes(
            steps=self.tally.steps_per_call if is_main() else 0,
            signum=(self.signals.received if self.signals else None) or 0,
            failed=int(self.folder is not None and self.folder.failure is not None),
        )

    def _goes_well(self, state: TrainState) -> bool:
        """Whether the latest step was taken, or is the last: amid skipped ones there is nothing good to go back to."""
        return self.progress.step == self.total_steps or int(state.skipped) == 0

    def _check_skips(self, skipped: int, step: int) -> None:
        """Tells of steps that were skipped by a step, and of too many in a row."""
        if self.tally.skipped_in_a_row >= SKIPS_TO_ROLL_BACK:
            raise _DivergedError(
                f"the loss or its gradient was not finite in {SKIPS_TO_ROLL_BACK} steps by step {step}"
            )
        if skipped:
            steps = "a step" if skipped == 1 else f"{skipped} steps"
            self.reporter.message(f"skipped {steps} by step {step}, whose loss or gradient was not finite")

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total_steps

    def _evaluate(self, state: TrainState) -> None:
        """Measures the validation loss, draws a sample, and tells of both."""
        self._settle()
        val_loss = self.evaluator(state.params)
        if not math.isfinite(val_loss):
            raise _DivergedError(f"the validation loss became {val_loss} by step {self.progress.step}")
        self.restored_step = None
        evaluation = Evaluation(
            step=self.progress.step,
            epoch=self.progress.epoch,
            train_loss=self.tally.loss,
            val_loss=val_loss,
            chars_per_second=self.tally.chars_per_second,
            elapsed_seconds=self.progress.elapsed_seconds,
            skipped_steps=self.tally.skipped,
        )
        self.tally.restart()
        self.progress = dataclasses.replace(
            self.progress, val_loss=val_loss, train_nats=0.0, train_count=0, train_skipped=0
        )
        if self.progress.best_val_loss is None or val_loss < self.progress.best_val_loss:
            self.progress = dataclasses.replace(self.progress, best_step=self.progress.step, best_val_loss=val_loss)
        sample = self._sample(state) if self.config.sample_length and is_main() else ""
        if self.folder is not None:
            self.folder.record(evaluation, sample)
        self.reporter.evaluation(evaluation, sample)
        self.calls_to_settle = CALLS_TO_SETTLE

    def _sample(self, state: TrainState) -> str:
        context = self.config.sample_context
        (text,) = generate_text(
            self.model,
            state.params,
            self.vocab,
            context,
            seed=self.progress.step,
            length=self.config.sample_length,
            temperature=SAMPLE_TEMPERATURE,
        )
        return context + text

    def _save(self, state: TrainState) -> None:
        if self.folder is not None:
            self._settle()
            if not _is_finite(on_one_device(state.params)):
                raise _DivergedError(f"the parameters are not finite by step {self.progress.step}")
            self.folder.save(state, self.progress)

    def _settle(self) -> None:
        """Waits for the device, so that what the host counts belongs to the state that it holds."""
        skipped = self.tally.skipped
        self.tally.flush()
        self._check_skips(self.tally.skipped - skipped, self.progress.step)
        self.progress = dataclasses.replace(
            self.progress,
            elapsed_seconds=time.monotonic() - self.started,
            train_nats=self.tally.nats,
            train_count=self.tally.count,
            train_skipped=self.tally.skipped,
        )

    def _leave(self, signum: int) -> None:
        assert self.folder is not None  # signals are caught only while there is a folder to save to
        self.folder.check()
        raise Interrupted(
            signum,
            f"interrupted at step {self.progress.step} of {self.total_steps}; saved in {self.folder.path}, "
            "--resume goes on from there",
        )


@jax.jit
def _is_finite(params: Params) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


def _share(budget: int | None, corpus: Corpus) -> tuple[int | None, int | None]:
    """Shares the memory for the text out between its two parts, by their lengths."""
    if budget is None:
        return None, None
    train = budget * len(corpus.train) // (len(corpus.train) + len(corpus.validation))
    return train, budget - train
