"""Creates the trackers requested on a command line."""

import importlib
import inspect
import os
import sys
from pathlib import Path

from charjax.errors import UserError
from charjax.progress.tracker import TensorBoard, Tracker
from charjax.runs.layout import TENSORBOARD


def trackers(tensorboard: bool, named: str | None, out: Path) -> list[Tracker]:
    """Returns a run's trackers.

    Args:
        tensorboard: whether to write event files to the run folder.
        named: MODULE:OBJECT, imported from the current folder or an installed package; or None.
        out: the run folder.

    Raises:
        UserError: tensorboardX is not installed, or the object does not exist or is not a tracker.
    """
    found: list[Tracker] = [TensorBoard(out / TENSORBOARD)] if tensorboard else []
    return found if named is None else [*found, _imported(named)]


def _imported(name: str) -> Tracker:
    module, _, path = name.partition(":")
    if not module or not path:
        raise UserError(f"--tracker must be MODULE:OBJECT, e.g. my_trackers:Wandb, not {name}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--tracker {name} cannot be imported: {error}") from error
    tracker = found() if inspect.isclass(found) else found
    if not callable(getattr(tracker, "log", None)):
        raise UserError(f"--tracker {name} has no log(step, values) method")
    return tracker
