"""Draws axes, ticks and text for SVG charts."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Okabe and Ito's palette, which color-blind readers can tell apart, too.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, HEIGHT, LEFT, TOP = 420, 300, 70, 16
_BOTTOM, _LEGEND, _LINE = 50, 200, 18


class Legend(NamedTuple):
    """A name shown beside the chart, its color, and whether its line is dashed; None if it has no line."""

    name: str
    color: str
    dashed: bool | None = None


def frame(body: Sequence[str], legend: Sequence[Legend], *, heights: Iterable[tuple[float, str]], titles: str) -> str:
    """Returns a complete SVG file: the parts of a chart on horizontal grid lines, with the legend beside them.

    Args:
        body: elements, drawn in order.
        legend: entries from top to bottom; those with an empty name are left out.
        heights: vertical positions of the grid lines, with the labels to their left.
        titles: the axis titles, from `axis_titles`.
    """
    bottom, wide = TOP + HEIGHT, LEFT + WIDTH + _LEGEND
    size = f'width="{wide}" height="{(high := max(bottom + _BOTTOM, 2 * TOP + _LINE * len(legend)))}"'
    parts = [f'<rect {size} fill="white"/>']
    for place, label in heights:
        parts += [f'<path d="M{LEFT} {place:.1f}h{WIDTH}" stroke="#ddd"/>', text(LEFT - 8, place + 4, label, "end")]
    parts += [titles, *body]
    for number, (name, color, dashed) in enumerate(legend):
        left, place = LEFT + WIDTH + 10, TOP + _LINE * (number + 0.7)
        if name and dashed is not None:
            parts.append(f'<path d="M{left} {place - 4:.1f}h24" {_stroke(color, dashed=dashed)}/>')
            left += 30
        parts += [text(left, place, name, "start", f' fill="{color}"')] if name else []
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {wide} {high}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12">', *parts, "</svg>\n"])


def axis_titles(across: str, up: str) -> str:
    """Returns the titles of both axes."""
    middle = TOP + HEIGHT / 2
    turned = f' transform="rotate(-90 16 {middle})"'
    return text(LEFT + WIDTH / 2, TOP + HEIGHT + 40, across) + "\n" + text(16, middle, up, extra=turned)


def text(x: float, y: float, content: str, anchor: str = "middle", extra: str = "") -> str:
    """Returns a line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{html.escape(content)}</text>'


def polyline(points: Iterable[tuple[float, float]], color: str, *, dashed: bool = False) -> str:
    """Returns a line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" {_stroke(color, dashed=dashed)}/>'


def _stroke(color: str, *, dashed: bool) -> str:
    return f'fill="none" stroke="{color}" stroke-width="1.5"' + (' stroke-dasharray="4 3"' if dashed else "")


def ticks(low: float, high: float) -> list[float]:
    """Returns four to nine round numbers, from at most `low` to at least `high`."""
    span = max(high - low, 1e-3)
    step = 10.0 ** math.floor(math.log10(span / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * n for n in range(first, max(last, first + 1) + 1)]
