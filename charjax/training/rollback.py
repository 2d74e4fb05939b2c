"""Goes back to an earlier checkpoint with half the learning rate when training diverges."""

import dataclasses

import jax
import numpy as np

from charjax.config import TrainConfig
from charjax.distributed.processes import together
from charjax.errors import UserError
from charjax.runs.metadata import Progress
from charjax.runs.shared_folder import SharedRun
from charjax.train_state import TrainState

MOST_ROLLBACKS = 5


class DivergedError(Exception):
    """Raised when a loss, gradient or parameter is not finite; the message says which one and at which step."""


class RollbackPolicy:
    """Decides which checkpoint a diverged run goes back to.

    Normally this is the latest checkpoint. If training diverges again before an evaluation has succeeded, that
    checkpoint was already bad, so the run goes back to the best one, which was good when it was evaluated, or, before
    the first evaluation, to the previous one.
    """

    def __init__(self, config: TrainConfig, folder: SharedRun | None) -> None:
        self._config, self._folder = config, folder
        # Set from a rollback until an evaluation succeeds.
        self._restored_step: int | None = None

    def evaluation_succeeded(self) -> None:
        """Records that training has been good since the last rollback."""
        self._restored_step = None

    def go_back(self, reason: str, progress: Progress, abstract: TrainState) -> tuple[TrainState, Progress]:
        """Restores the checkpoint to go back to.

        A run that is killed before its next save resumes from that checkpoint with the learning rate saved there, and
        may go back one more time.

        Args:
            reason: what diverged, for the error message.
            progress: progress at the point of divergence.
            abstract: shapes, dtypes and shardings of the state; see `abstract_train_state`.

        Returns:
            The state and progress of the checkpoint, with one more rollback counted.

        Raises:
            UserError: there are no checkpoints, or there have been too many rollbacks.
        """
        rollbacks = progress.rollbacks + 1
        advice = f"try a lower --learning-rate (currently {self._config.learning_rate:g}) or a lower --clip-norm"
        with together():
            if self._folder is None:
                raise UserError(f"{reason}; {advice}")
            if rollbacks > MOST_ROLLBACKS:
                kept = f"the last good checkpoint is kept in {self._folder.path}"
                raise UserError(f"{reason}, after {MOST_ROLLBACKS} rollbacks; {kept}; {advice}")
        up_to = None
        if self._restored_step is not None:
            up_to = self._restored_step - 1 if progress.best_step is None else progress.best_step
        state, restored, _ = self._folder.restore(abstract, up_to=up_to)
        self._restored_step = restored.step
        # Steps skipped before the checkpoint must not count toward the next rollback.
        none = jax.make_array_from_callback((), state.skipped.sharding, lambda _: np.int32(0))
        state = state.replace(skipped=none)
        return state, dataclasses.replace(restored, rollbacks=rollbacks)


def rate_scale(progress: Progress) -> float:
    """Returns the learning-rate factor, which each rollback halves; it is a power of two, so exact in float32."""
    return 0.5**progress.rollbacks
