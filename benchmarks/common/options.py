"""The command line of the benchmarks."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.results import FOLDER


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser for a benchmark, described by its module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Adds --results, the folder to write to."""
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder to write to")


def add_axes(parser: argparse.ArgumentParser, grid: Mapping[str, Sequence[int]]) -> None:
    """Adds an option for each axis of a grid, such as --hidden-dim 128 256."""
    for name, values in grid.items():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=int, help=f"default {list(values)}")
