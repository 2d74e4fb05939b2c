"""Draws curves as an SVG chart."""

from collections.abc import Sequence
from typing import NamedTuple

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


class Curve(NamedTuple):
    """A line through points (x, y).

    Attributes:
        name: shown beside the chart; empty for no label.
        points: in order of increasing x.
        color: index of its color; curves may share a color.
        dashed: whether to draw it dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dashed: bool = False


def line_chart(curves: Sequence[Curve], *, across: str, up: str) -> str:
    """Draws curves over a common horizontal axis that begins at 0.

    Args:
        curves: the curves, at least one of which has a point.
        across: title of the horizontal axis.
        up: title of the vertical axis.

    Returns:
        A complete SVG file.
    """
    points = [point for curve in curves for point in curve.points]
    marks = ticks(min(y for _, y in points), max(y for _, y in points))
    columns = [mark for mark in ticks(0, max(x for x, _ in points)) if mark <= max(x for x, _ in points)]
    right = max(*(x for x, _ in points), columns[-1], 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * x / right, TOP + HEIGHT * (marks[-1] - y) / (marks[-1] - marks[0])

    parts = [text(place(mark, 0)[0], TOP + HEIGHT + 18, _short(mark)) for mark in columns]
    legend = []
    for curve in curves:
        color = COLORS[curve.color % len(COLORS)]
        placed = [place(*point) for point in curve.points]
        parts.append(polyline(placed, color, dashed=curve.dashed))
        if len(placed) == 1:
            parts.append(f'<circle cx="{placed[0][0]:.1f}" cy="{placed[0][1]:.1f}" r="3" fill="{color}"/>')
        legend.append(Legend(curve.name, color, curve.dashed))
    lines = [(place(0, mark)[1], f"{mark:.10g}") for mark in marks]
    return frame(parts, legend, heights=lines, titles=axis_titles(across, up))


def _short(value: float) -> str:
    """Formats a number on the horizontal axis: 250000 as 250k."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.10g}{prefix}"
    return f"{value:.10g}"
