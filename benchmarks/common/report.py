"""Ratios of what was measured in the same rounds, and tables in Markdown."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""A point that was measured: "sizes" and "peers", results by the peers' names."""
Spread = tuple[float, float, float]
"""Median, least and largest."""


def paired(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Returns the spread of the rounds' own ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def time_ratio(row: Row, others: Iterable[str], ours: str = "charjax") -> Spread | None:
    """Returns the time of the fastest of other peers over ours; None where one side has none."""
    best = fastest(row, others)
    if best is None or "median_seconds" not in row["peers"].get(ours, {}):
        return None
    return paired(row["peers"][best]["seconds"], row["peers"][ours]["seconds"])


def fastest(row: Row, names: Iterable[str]) -> str | None:
    """Returns which of some peers has the least median time."""
    seconds = {name: row["peers"].get(name, {}).get("median_seconds") for name in names}
    return min((name for name in seconds if seconds[name] is not None), key=lambda name: seconds[name], default=None)


def torch_names(row: Row) -> list[str]:
    """Returns the names of PyTorch's peers in a row."""
    return [name for name in row["peers"] if name.startswith("torch")]


def summarize(columns: Mapping[str, Iterable[Spread | None]]) -> dict[str, dict[str, float]]:
    """Returns the geometric mean, the least and the number of each column's medians; empty columns are left out."""
    medians = {name: [spread[0] for spread in column if spread] for name, column in columns.items()}
    return {
        name: {"geometric_mean": statistics.geometric_mean(found), "least": min(found), "points": len(found)}
        for name, found in medians.items()
        if found
    }


def summary_lines(summary: dict[str, dict[str, float]]) -> list[str]:
    """Returns a line of text for each column of `summarize`."""
    return [
        f"{name}: geometric mean {it['geometric_mean']:.2f}, least {it['least']:.2f}, {it['points']} points"
        for name, it in summary.items()
    ]


def show_ratio(spread: Spread | None) -> str:
    """Returns a ratio as text, with the least and the largest."""
    return "-" if spread is None else f"{spread[0]:.2f} ({spread[1]:.2f}-{spread[2]:.2f})"


def show(value: float | None, spec: str = ",.0f") -> str:
    """Returns a number as text; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, spec)


def why(result: dict[str, Any]) -> str:
    """Returns why a peer has no figure, for a table's cell; the file has the whole message."""
    return str(result.get("cannot_run", "-"))[:60].replace("|", "/")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table whose columns are aligned."""
    widths = [max(3, *(len(line[n]) for line in (head, *lines))) for n in range(len(head))]
    cells = [head, ["-" * width for width in widths], *lines]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells)
