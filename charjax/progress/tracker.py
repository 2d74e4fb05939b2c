"""Logs measurements in addition to the run folder's logs: the tracker interface, and TensorBoard."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from charjax.errors import UserError, checked_path
from charjax.metrics import Evaluation

_NUMBERS = itertools.count()


class Tracker(Protocol):
    """Receives the measurements of each evaluation; any object with this method will do.

    Examples:
        >>> from charjax import Tracker
        >>> class Printed:
        ...     def log(self, step, values):
        ...         print(step, values["val_loss"])
        >>> tracker: Tracker = Printed()  # fit(model, corpus, trackers=[tracker]) calls it
        >>> tracker.log(100, {"val_loss": 1.5})
        100 1.5
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the measurements of an evaluation.

        Args:
            step: optimizer steps taken.
            values: measurements by their names in metrics.jsonl, e.g. val_loss; unknown ones are omitted.
        """


def values_to_track(evaluation: Evaluation) -> dict[str, float]:
    """Returns the known measurements of an evaluation."""
    known = {name: value for name, value in evaluation.to_dict().items() if value is not None}
    del known["step"]
    return known


class TensorBoard:
    """A `Tracker` that writes an event file for TensorBoard with tensorboardX: pip install "charjax[tensorboard]".

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from charjax import TensorBoard
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TensorBoard(folder).log(100, {"val_loss": 1.5})  # to look at it: tensorboard --logdir FOLDER
        ...     [file.name.split(".")[2] for file in Path(folder).iterdir()]
        ['tfevents']
    """

    def __init__(self, folder: str | Path) -> None:
        """Prepares to write an event file in a folder, which is created with the first measurements.

        Raises:
            UserError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter  # noqa: PLC0415 -- an extra
        except ImportError as error:
            raise UserError(
                'TensorBoard needs tensorboardX; install it with pip install "charjax[tensorboard]"'
            ) from error
        self._open, self._folder = SummaryWriter, str(checked_path("folder", folder))
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hands the values to tensorboardX, which writes them in the background."""
        if self._writer is None:
            # TensorBoard then drops any later steps that were logged before the run was killed or rolled back.
            # The name's seconds alone may be those of an earlier file.
            own = f".{os.getpid()}.{next(_NUMBERS)}"
            self._writer = self._open(self._folder, purge_step=step, flush_secs=0, filename_suffix=own)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Waits until everything is written, then closes the file, as also happens when the process ends."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
