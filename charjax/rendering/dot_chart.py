"""Draws measurements as an SVG chart: dots in columns, with a line through the means of each series."""

import statistics
from collections.abc import Mapping, Sequence

from charjax.rendering.svg_axes import (
    COLORS,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Legend,
    axis_titles,
    frame,
    polyline,
    text,
    ticks,
)


def dot_chart(
    columns: Sequence[str], series: Mapping[str, Mapping[str, Sequence[float]]], *, across: str, up: str
) -> str:
    """Draws a chart.

    Args:
        columns: names of the columns, from left to right.
        series: for each name, which may be empty, the values in each column; columns may be missing or empty.
        across: title of the horizontal axis.
        up: title of the vertical axis.

    Returns:
        A complete SVG file.
    """
    values = [value for one in series.values() for column in one.values() for value in column]
    marks = ticks(min(values), max(values))
    places = {name: LEFT + WIDTH * (n + 0.5) / len(columns) for n, name in enumerate(columns)}

    def height(value: float) -> float:
        return TOP + HEIGHT * (marks[-1] - value) / (marks[-1] - marks[0])

    parts = [text(place, TOP + HEIGHT + 18, name) for name, place in places.items()]
    legend = [Legend(name, COLORS[number % len(COLORS)]) for number, name in enumerate(series)]
    for (_, color, _), by_column in zip(legend, series.values(), strict=True):
        dots = [(places[column], height(value)) for column in by_column for value in by_column[column]]
        means = [(places[c], height(statistics.fmean(by_column[c]))) for c in columns if by_column.get(c)]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}" fill-opacity="0.6"/>' for x, y in dots]
        parts.append(polyline(means, color))
    lines = [(height(mark), f"{mark:.10g}") for mark in marks]
    return frame(parts, legend, heights=lines, titles=axis_titles(across, up))
