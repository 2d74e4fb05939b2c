"""Curves in SVG."""

import re
import xml.etree.ElementTree

from charjax.rendering.line_chart import Curve, line_chart


def test_curves_share_axes_that_begin_at_zero():
    chart = line_chart(
        [Curve("a < b", [(1, 2.0), (4, 1.0)]), Curve("other", [(2, 1.5)], color=1, dashed=True)],
        across="epoch",
        up="nats per character",
    )
    root = xml.etree.ElementTree.fromstring(chart)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "other", "epoch", "nats per character", "0", "4", "1", "2"} <= set(texts)
    first, second = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline points="([^"]*)"', chart)
    )
    assert first == [(70 + 105, 16), (70 + 420, 16 + 300)]
    assert second == [(70 + 210, 16 + 150)]
    assert chart.count("stroke-dasharray") == 2  # the curve and its sample in the legend
    assert chart.count("<circle") == 1  # one point makes no line


def test_a_single_point_at_zero_has_a_place():
    chart = line_chart([Curve("", [(0, 1.0)])], across="", up="")
    assert "nan" not in chart


def test_large_numbers_across_are_short():
    chart = line_chart([Curve("", [(0, 1.0), (1_200_000, 2.0)])], across="", up="")
    assert ">1M<" in chart
    assert ">0<" in chart
