"""Schedules evaluations, checkpoints and the end of training in optimizer steps."""

import dataclasses
from typing import Self

from charjax.config import TrainConfig
from charjax.data.batching import SequenceLayout
from charjax.data.corpus import Corpus


def training_layout(corpus: Corpus, config: TrainConfig) -> SequenceLayout:
    """Returns the layout that splits the training text into sequences and windows."""
    return SequenceLayout.of(len(corpus.train), batch_size=config.batch_size, seq_len=config.seq_len)


def steps_of_run(config: TrainConfig, steps_per_epoch: int) -> int:
    """Returns the number of optimizer steps in a full run, at least 1."""
    return max(1, round(config.epochs * steps_per_epoch))


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The steps at which training evaluates, saves and ends.

    Attributes:
        steps_per_epoch: optimizer steps in one pass over the training text.
        total_steps: total number of optimizer steps in the run.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
    """

    steps_per_epoch: int
    total_steps: int
    eval_every: int
    checkpoint_every: int

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> Self:
        """Builds the plan; the defaults are to evaluate after each epoch and to save after each evaluation."""
        eval_every = config.eval_every or steps_per_epoch
        checkpoint_every = config.checkpoint_every or eval_every
        return cls(steps_per_epoch, steps_of_run(config, steps_per_epoch), eval_every, checkpoint_every)

    def evaluations_since(self, earlier: int, step: int) -> int:
        """Returns the number of evaluations due after step `earlier`, up to and including `step`."""
        regular = step // self.eval_every - earlier // self.eval_every
        return regular + (earlier < step == self.total_steps and step % self.eval_every != 0)

    def is_evaluation_due(self, step: int) -> bool:
        """Returns True if an evaluation is due at this step, as is always the case at the last step."""
        return step % self.eval_every == 0 or step == self.total_steps

    def is_checkpoint_due(self, step: int) -> bool:
        """Returns True if a checkpoint is due at this step, as is always the case at the last step."""
        return step % self.checkpoint_every == 0 or step == self.total_steps

    def steps_to_pause(self, step: int) -> int:
        """Returns the number of steps until an evaluation or checkpoint is due or training ends."""
        to_pause = [every - step % every for every in (self.eval_every, self.checkpoint_every)]
        return min(*to_pause, self.total_steps - step)
