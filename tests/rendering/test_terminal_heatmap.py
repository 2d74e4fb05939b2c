"""Text in a terminal: all its characters, in colors where they are wanted, else with marks below."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from charjax.rendering.color_scale import LIGHT_INK, Scale
from charjax.rendering.terminal_heatmap import color_lines, has_colors, legend, mark_lines, marks_for

SURPRISE, ACTIVATION = Scale("surprise in bits", 0, 10, 20), Scale("tanh(c)", -1, 1, 21)


def lines(text, values, width=80, scale=SURPRISE, encoding="utf-8"):
    return list(color_lines(zip(text, values, strict=True), scale, width=width, encoding=encoding))


def background(line, place):
    """Returns the color behind a character, or None."""
    styles = [span.style for span in line.spans if span.start <= place < span.end]
    assert len(styles) <= 1
    return styles[0].bgcolor.get_truecolor() if styles and styles[0].bgcolor else None


def test_each_character_has_its_color():
    (line,) = lines("abcd", [0, 9.9, 3, float("nan")])
    assert line.plain == "abcd"
    assert [background(line, place) for place in range(4)] == [
        None, SURPRISE.color_on_any(19), SURPRISE.color_on_any(6), None
    ]  # fmt: skip
    assert line.spans[0].style.color.get_truecolor() == LIGHT_INK


def test_neighbors_of_one_color_are_written_together():
    (line,) = lines("aaabbb", [5, 5, 5, 9, 9, 9])
    assert [(span.start, span.end) for span in line.spans] == [(0, 3), (3, 6)]


def test_lines_are_folded_and_invisible_characters_named():
    assert [line.plain for line in lines("ab\ncdef", [1] * 7, width=3)] == ["ab↵", "cde", "f"]
    (line,) = lines("\x1b[31m\t\u202e\x9b", [9] * 8)
    assert line.plain == "U+001B[31m⇥U+202EU+009B"
    (line,) = lines("é", [9], encoding="ascii")
    assert line.plain == "\\xe9"


def test_cold_and_warm():
    (line,) = lines("abc", [-1, 0, 1], scale=ACTIVATION)
    assert background(line, 0) == ACTIVATION.color_on_any(0)
    assert background(line, 1) is None
    assert background(line, 2) == ACTIVATION.color_on_any(20)


@pytest.mark.parametrize("scale", [SURPRISE, ACTIVATION])
def test_the_legend_has_every_step(scale):
    line = legend(scale)
    assert line.plain == f"{scale.name}: {scale.low:g} {' ' * scale.levels} {scale.high:g}"
    begin = len(f"{scale.name}: {scale.low:g} ")
    assert [background(line, begin + n) for n in range(scale.levels)] == list(
        map(scale.color_on_any, range(scale.levels))
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colors_where_the_terminal_has_them_and_the_user_wants_them(environment, expected):
    console = Console(file=io.StringIO(), force_terminal=True, _environ=environment)
    assert has_colors(console) == expected


def test_no_colors_in_a_file_unless_forced():
    assert not has_colors(Console(file=io.StringIO(), _environ={"TERM": "xterm-256color"}))
    assert has_colors(Console(file=io.StringIO(), _environ={"TERM": "xterm-256color", "FORCE_COLOR": "1"}))
    forced = {"TERM": "xterm-256color", "FORCE_COLOR": "1", "NO_COLOR": "1"}
    assert not has_colors(Console(file=io.StringIO(), _environ=forced))


# ---- marks


def marked(text, values, width=80, encoding="utf-8"):
    return list(mark_lines(zip(text, values, strict=True), ACTIVATION, width=width, encoding=encoding))


def test_a_mark_below_each_character():
    assert marked("ab c\nd", [-1, 1, 0, 0.6, -0.6, 0.99]) == ["ab c↵", "▁█▅▇▂", "d", "█"]


def test_values_out_of_range_take_the_last_mark():
    assert marked("abc", [-3, 7, float("inf")])[1] == "▁██"


def test_long_lines_with_marks_are_folded():
    assert marked("abcdefg", [0] * 7, width=3) == ["abc", "▅▅▅", "def", "▅▅▅", "g", "▅"]
    assert marked("日本", [-1, 1], width=3) == ["日", "▁▁", "本", "██"]
    assert marked("日", [-1], width=1) == ["日", "▁▁"]


def test_marks_are_as_wide_as_their_characters():
    text = "a\t日\x1b[31m\u202e\xa0é\udc80\ue000\x9b"
    shown, below = marked(text, [0.5] * len(text))
    assert cell_len(shown) == len(below)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "U+001B[31m" in shown
    assert "0x80" in shown


def test_an_encoding_without_blocks_gets_digits():
    assert marks_for("ascii") == "0123456789"
    shown, below = marked("aé\n", [-1, 0.95, 0], encoding="ascii")
    assert below == "0" + "9" * 4 + "5" * 6
    assert shown == "a\\xe9\\u21b5"


@pytest.mark.parametrize("text", ["", "\n"])
def test_little_text(text):
    assert marked(text, [0.0] * len(text)) == (["↵", "▅"] if text else [])
