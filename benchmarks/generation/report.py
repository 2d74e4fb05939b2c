"""What was measured, as Markdown, and as JSON in a file per number format."""

import datetime
import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.generation.problem import step_flops
from benchmarks.train_step import mean_and_least

Row = dict[str, Any]
Spread = tuple[float, float, float]
SPEED = (
    "H", "streams", "dtype", "charjax", "torch loop", "torch compiled", "flax", "charjax / better torch", "which",
    "charjax / flax", "limit", "charjax / limit", "of peak",
)  # fmt: skip
KINDS = ("charjax", "torch loop", "torch compiled", "flax")
COMPILED = tuple(kind for kind in KINDS if kind != "torch loop")
TIMES = (
    "H", "streams", "dtype", *(f"{kind} ms" for kind in KINDS), *(f"{kind} s" for kind in COMPILED), "torch loop is",
    "torch compiled is", "GB/s",
)  # fmt: skip


def better_torch(row: Row) -> str | None:
    """The fastest of PyTorch's peers, eager or compiled, whatever its number format."""
    names = [name for name in row["peers"] if name.startswith("torch") and "median" in row["peers"][name]]
    return max(names, key=lambda name: row["peers"][name]["median"], default=None)


def ratio(row: Row, ours: str, theirs: str | None) -> Spread | None:
    """Characters per second of a peer over another's: median, least and largest of the rounds' own ratios."""
    rates = [row["peers"].get(name, {}).get("characters_per_second") for name in (ours, theirs)]
    return None if None in rates else _spread(a / b for a, b in zip(*rates, strict=True))


def limit(row: Row, dtype: str) -> list[float]:
    """Characters per second, in each round, of a machine that did nothing but read each step's weights."""
    return [row["sizes"]["streams"] / read["seconds"] for read in row["limits"][dtype]["rounds"]]


def of_limit(row: Row, dtype: str) -> Spread | None:
    """Charjax's characters per second as a share of the limit."""
    rates, limits = row["peers"].get(f"charjax {dtype}", {}).get("characters_per_second"), limit(row, dtype)
    return _spread(a / b for a, b in zip(rates, limits, strict=True)) if rates and limits else None


def speed_table(rows: list[Row], dtypes: list[str], peak: dict[str, float]) -> str:
    """Characters per second over all streams, and their ratios."""
    lines = []
    for dtype, row in ((dtype, row) for dtype in dtypes for row in rows):
        better, ours = better_torch(row), row["peers"].get(f"charjax {dtype}", {}).get("median")
        flops = step_flops(row["sizes"]) / row["sizes"]["streams"]
        lines.append(
            [
                *_sizes(row, dtype),
                *(_number(row["peers"].get(f"{kind} {dtype}", {}).get("median")) for kind in KINDS),
                _ratio(ratio(row, f"charjax {dtype}", better)),
                "-" if better is None else better.removeprefix("torch "),
                _ratio(ratio(row, f"charjax {dtype}", f"flax {dtype}")),
                _number(statistics.median(limit(row, dtype)) if limit(row, dtype) else None),
                _ratio(of_limit(row, dtype)),
                "-" if ours is None or dtype not in peak else f"{ours * flops / peak[dtype] / 1e9:.0%}",
            ]
        )
    return _markdown(SPEED, lines)


def times_table(rows: list[Row], dtypes: list[str]) -> str:
    """Milliseconds to the first character, seconds of compiling, and how PyTorch was fastest."""
    lines = []
    for dtype, row in ((dtype, row) for dtype in dtypes for row in rows):
        results = {kind: row["peers"].get(f"{kind} {dtype}", {}) for kind in KINDS}
        firsts = (result.get("first_seconds") for result in results.values())
        compiling = (results[kind].get("compile_seconds") for kind in COMPILED)
        rates = [read["gigabytes_per_second"] for read in row["limits"][dtype]["rounds"]]
        lines.append(
            [
                *_sizes(row, dtype),
                *("-" if not first else f"{1e3 * statistics.median(first):.1f}" for first in firsts),
                *("-" if seconds is None else f"{seconds:.1f}" for seconds in compiling),
                *(_told(results[kind]) for kind in ("torch loop", "torch compiled")),
                ", ".join(f"{max(rate[n] for rate in rates):.0f} ({n})" for n in rates[0]) if rates else "-",
            ]
        )
    return _markdown(TIMES, lines)


def summary(rows: list[Row], dtype: str) -> dict[str, Any]:
    """Geometric mean and least of the ratios."""
    found = {
        "charjax / better torch": [ratio(row, f"charjax {dtype}", better_torch(row)) for row in rows],
        "charjax / flax": [ratio(row, f"charjax {dtype}", f"flax {dtype}") for row in rows],
        "charjax / limit, one stream": [of_limit(row, dtype) for row in rows if row["sizes"]["streams"] == 1],
    }
    medians = {name: [spread[0] for spread in spreads if spread] for name, spreads in found.items()}
    return {name: mean_and_least(ratios) for name, ratios in medians.items() if ratios}


def save(folder: Path, rows: list[Row], dtypes: list[str], setting: dict[str, Any]) -> list[Path]:
    """Writes a file per number format, with PyTorch's peers in every format: the better of all is compared with."""
    now = datetime.datetime.now(datetime.UTC)
    command = " ".join(["python -m benchmarks.generation", *sys.argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"generation-{now:%Y-%m-%d-%H%M}-{dtype}.json" for dtype in dtypes]
    for dtype, path in zip(dtypes, paths, strict=True):
        head = {"date": f"{now:%Y-%m-%dT%H:%M:%SZ}", "command": command, "machine": machine.describe(), "dtype": dtype}
        content = {**head, **setting, "summary": summary(rows, dtype), "rows": [_part(row, dtype) for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n")
    return paths


def _part(row: Row, dtype: str) -> Row:
    """What of a row bears on a number format."""
    peers = {name: it for name, it in row["peers"].items() if name.endswith(dtype) or name.startswith("torch")}
    shown = {"better_torch": better_torch(row), "charjax / limit": of_limit(row, dtype)}
    return {**row, "peers": peers, "limits": {dtype: row["limits"][dtype]}, **shown}


def _spread(values: Iterable[float]) -> Spread:
    known = list(values)
    return statistics.median(known), min(known), max(known)


def _sizes(row: Row, dtype: str) -> tuple[str, str, str]:
    return str(row["sizes"]["hidden_dim"]), str(row["sizes"]["streams"]), dtype


def _told(result: Row) -> str:
    """How a peer of PyTorch's was fastest."""
    if "step" not in result:
        return result.get("cannot_run", "-").replace("|", "/")
    words = [result["step"], f"{result['threads']} threads", result["sampling"].removeprefix("by_")]
    words += ["autocast"] if result.get("autocast") else []
    words += [result["mode"], f"{result['steps_per_call']} steps"] if "mode" in result else []
    return " ".join(words)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def _ratio(found: Spread | None) -> str:
    return "-" if found is None else f"{found[0]:.2f} ({found[1]:.2f}-{found[2]:.2f})"


def _markdown(head: Iterable[str], lines: list[list[str]]) -> str:
    cells = [list(head), ["---"] * len(list(head)), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
