"""Numbers in lines of progress."""

import math

import pytest

from charjax.progress.formatting import duration, four_digits, quantity


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "    0"),
        (999.4, "  999"),
        (999.6, "1.00k"),
        (9_994, "9.99k"),
        (9_996, "10.0k"),
        (99_960, " 100k"),
        (999_600, "1.00M"),
        (41e6, "41.0M"),
        (2.5e12, "2500G"),
        (math.nan, "    -"),
    ],
)
def test_quantity(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3_599.4, "0:59:59"), (90_061, "25:01:01"), (math.nan, "-:--:--")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1.000"), (4.29, "4.290"), (42.9, "42.90"), (128, "128.0"), (5000, " 5000"), (math.inf, "  inf")],
)
def test_four_digits(value, text):
    assert four_digits(value) == text
