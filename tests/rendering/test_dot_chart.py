"""The chart of a sweep: places, ticks, and text that is no markup."""

import xml.etree.ElementTree as ET

import pytest

from charjax.rendering.dot_chart import dot_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(columns, series):
    return ET.fromstring(dot_chart(columns, series, across="a < b", up="loss & more"))


def test_dots_stand_in_their_columns_and_lines_lead_through_the_means():
    chart = drawn(["1", "2", "3"], {"one": {"1": [2.0, 4.0], "3": [3.0]}, "two": {"2": [], "3": [2.0]}})
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in chart.iter(f"{SVG}circle")]
    assert len(dots) == 4
    (low, high), (right, middle), (_, lowest) = (dots[0][1], dots[1][1]), dots[2], dots[3]
    assert dots[0][0] == dots[1][0] < right
    assert high < middle < low == lowest
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert [len(line.get("points").split()) for line in chart.iter(f"{SVG}polyline")] == [2, 1]
    assert {"one", "two", "a < b", "loss & more", "2", "4"} <= {text.text for text in chart.iter(f"{SVG}text")}


@pytest.mark.parametrize("values", [[1.5], [1.5, 1.5001], [0.1, 900.0], [1.49999, 1.50001]])
def test_all_values_are_between_the_ticks(values):
    chart = drawn(["only"], {"": {"only": values}})
    lines = [float(path.get("d").split()[1].split("h")[0]) for path in chart.iter(f"{SVG}path")]
    heights = [float(dot.get("cy")) for dot in chart.iter(f"{SVG}circle")]
    assert 2 <= len(lines) <= 9
    assert min(lines) - 0.1 <= min(heights) <= max(heights) <= max(lines) + 0.1
    assert sum(text.text in ("", "only") for text in chart.iter(f"{SVG}text")) == 1


def test_many_series_make_the_chart_taller():
    chart = drawn(["1"], {f"series {n}": {"1": [n]} for n in range(30)})
    last = max(float(text.get("y")) for text in chart.iter(f"{SVG}text"))
    assert last < float(chart.get("height"))
