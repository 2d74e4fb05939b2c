"""A chart of measurements in SVG: dots in columns, with a line through the means of each series."""

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND, _LINE = 420, 300, 70, 16, 50, 200, 18
# Okabe and Ito's colors, which differ for the color-blind, too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def dot_chart(
    columns: Sequence[str], series: Mapping[str, Mapping[str, Sequence[float]]], *, across: str, up: str
) -> str:
    """Draws a chart.

    Args:
        columns: names of the columns, from left to right.
        series: per name, which may be empty, the values in each column; columns may be missing or empty.
        across: title of the horizontal axis.
        up: title of the vertical axis.

    Returns:
        A whole SVG file.
    """
    values = [value for one in series.values() for column in one.values() for value in column]
    ticks = _ticks(min(values), max(values))
    places = {name: _LEFT + _WIDTH * (n + 0.5) / len(columns) for n, name in enumerate(columns)}

    def height(value: float) -> float:
        return _TOP + _HEIGHT * (ticks[-1] - value) / (ticks[-1] - ticks[0])

    bottom, middle = _TOP + _HEIGHT, _TOP + _HEIGHT / 2
    size = f'width="{_LEFT + _WIDTH + _LEGEND}" height="{max(bottom + _BOTTOM, 2 * _TOP + _LINE * len(series))}"'
    parts = [f'<rect {size} fill="white"/>']
    parts += [f'<path d="M{_LEFT} {height(tick):.1f}h{_WIDTH}" stroke="#ddd"/>' for tick in ticks]
    parts += [_text(_LEFT - 8, height(tick) + 4, f"{tick:.10g}", "end") for tick in ticks]
    parts += [_text(place, bottom + 18, name) for name, place in places.items()]
    parts += [_text(_LEFT + _WIDTH / 2, bottom + 40, across)]
    parts += [_text(16, middle, up, extra=f' transform="rotate(-90 16 {middle})"')]
    for number, (name, by_column) in enumerate(series.items()):
        color, label_height = _COLORS[number % len(_COLORS)], _TOP + _LINE * (number + 0.7)
        dots = [(places[column], height(value)) for column in by_column for value in by_column[column]]
        means = [(places[c], height(statistics.fmean(by_column[c]))) for c in columns if by_column.get(c)]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}" fill-opacity="0.6"/>' for x, y in dots]
        parts += [f'<polyline points="{_points(means)}" fill="none" stroke="{color}" stroke-width="1.5"/>']
        parts += [_text(_LEFT + _WIDTH + 10, label_height, name, "start", f' fill="{color}"')] if name else []
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n{body}\n</svg>\n'


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{html.escape(text)}</text>'


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers, four to nine of them, from below `low` to above `high`."""
    span = max(high - low, 1e-3)
    step = 10.0 ** math.floor(math.log10(span / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * n for n in range(first, max(last, first + 1) + 1)]
