"""Marks stand under their characters, whatever these are."""

import pytest
from rich.cells import cell_len

from charjax.rendering.color_scale import Scale
from charjax.rendering.terminal_heatmap import marks_for, trace

SCALE = Scale("tanh(c)", -1, 1, 21)


def lines(text, values, width=80, encoding="utf-8"):
    return list(trace(zip(text, values, strict=True), SCALE, width=width, encoding=encoding))


def test_a_mark_under_each_character():
    assert lines("ab c\nd", [-1, 1, 0, 0.6, -0.6, 0.99]) == ["ab c↵", "▁█▅▇▂", "d", "█"]


def test_what_lies_beyond_takes_the_last_mark():
    assert lines("abc", [-3, 7, float("inf")])[1] == "▁██"


def test_long_lines_are_folded():
    assert lines("abcdefg", [0] * 7, width=3) == ["abc", "▅▅▅", "def", "▅▅▅", "g", "▅"]
    assert lines("日本", [-1, 1], width=3) == ["日", "▁▁", "本", "██"]
    assert lines("日", [-1], width=1) == ["日", "▁▁"]


def test_marks_are_as_wide_as_their_characters():
    text = "a\t日\x1b[31m\u202e\xa0é\udc80\ue000\x9b"
    shown, below = lines(text, [0.5] * len(text))
    assert cell_len(shown) == len(below)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "U+001B[31m" in shown
    assert "0x80" in shown


def test_an_encoding_without_blocks_gets_digits():
    assert marks_for("ascii") == "0123456789"
    shown, below = lines("aé\n", [-1, 0.95, 0], encoding="ascii")
    assert below == "0" + "9" * 4 + "5" * 6
    assert shown == "a\\xe9\\u21b5"


@pytest.mark.parametrize("text", ["", "\n"])
def test_little_text(text):
    assert lines(text, [0.0] * len(text)) == (["↵", "▅"] if text else [])
