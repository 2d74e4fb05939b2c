"""Compares runs side by side: the facts that differ, and the loss curves."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from charjax.cli.output import stdout_encoding, write
from charjax.errors import UserError
from charjax.metrics import Evaluation
from charjax.rendering.line_chart import Curve
from charjax.rendering.visible_text import one_line
from charjax.runs.layout import METRICS
from charjax.runs.logs import read_metrics
from charjax.runs.metadata import RunInfo
from charjax.runs.model_file import read_run

Axis = Literal["characters", "seconds", "epochs"]
_TITLES = {"characters": "characters trained on", "seconds": "seconds", "epochs": "epoch"}


class Evaluated(NamedTuple):
    """A run and its evaluations.

    Attributes:
        name: its folder, without the parent folders that all runs share.
        info: its configuration.
        evaluations: its evaluations, at least one.
    """

    name: str
    info: RunInfo
    evaluations: list[Evaluation]


def read_evaluated(folders: Sequence[Path]) -> list[Evaluated]:
    """Reads the configurations and logs of runs.

    Raises:
        UserError: a folder is not a run folder, is given twice, or has no log or evaluations.
    """
    real = [os.path.realpath(folder) for folder in folders]
    common = os.path.commonpath([os.path.dirname(path) for path in real])
    runs = []
    for folder, path in zip(folders, real, strict=True):
        if real.count(path) > 1:
            raise UserError(f"{folder} is given twice; pass each run only once")
        info, _ = read_run(folder)
        if not os.path.lexists(folder / METRICS):
            raise UserError(
                f"{folder} is a model without the log of a training ({METRICS}), so it has no loss curves; "
                "pass the --out folder of charjax train"
            )
        evaluations = read_metrics(folder / METRICS)
        if not any(math.isfinite(evaluation.val_loss) for evaluation in evaluations):
            raise UserError(f"{folder} has not been evaluated yet; wait for its first evaluation")
        runs.append(Evaluated(os.path.relpath(path, common), info, evaluations))
    return runs


def curves(runs: Sequence[Evaluated], against: Axis) -> list[Curve]:
    """Returns the validation and (dashed) training loss curves of each run."""
    found = []
    for color, run in enumerate(runs):
        for measure, dashed in (("val_loss", False), ("train_loss", True)):
            measured = [(_place(run, one, against), getattr(one, measure)) for one in run.evaluations]
            points = [(x, loss) for x, loss in measured if math.isfinite(loss)]
            name = f"{run.name}, {'training' if dashed else 'validation'}"
            found += [Curve(name, points, color, dashed)] if points else []
    return found


def axis_title(against: Axis) -> str:
    """Returns the title of the horizontal axis."""
    return _TITLES[against]


def _place(run: Evaluated, evaluation: Evaluation, against: Axis) -> float:
    if against == "seconds":
        return evaluation.elapsed_seconds
    if against == "epochs":
        return evaluation.epoch
    # Logs written by earlier versions do not contain the count.
    seen = evaluation.chars_seen
    return evaluation.epoch * run.info.corpus.train_characters if seen is None else seen


def differences(facts: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Returns the facts that differ between runs, each with its value for every run, or "-" for a run without it."""
    names = dict.fromkeys(name for one in facts for name in one)
    rows = {name: [one.get(name, "-") for one in facts] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def write_comparison(names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Writes facts in columns, one per run; values are made safe for a terminal."""
    table = [["", *names], *([name, *row] for name, row in rows.items())]
    safe = [[one_line(cell, stdout_encoding()) for cell in row] for row in table]
    widths = [max(len(row[column]) for row in safe) for column in range(len(safe[0]))]
    for row in safe:
        write("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    if not rows:
        write("no differences\n")
