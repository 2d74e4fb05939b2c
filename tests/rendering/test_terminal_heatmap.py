"""Text painted in a terminal: its characters are all there, and colours only where they are wanted."""

import io

import pytest
from rich.console import Console

from charjax.rendering.color_scale import DARK_BACKGROUND, LIGHT_BACKGROUND, LIGHT_INK, Scale
from charjax.rendering.terminal_heatmap import has_colours, legend, paint

SURPRISE, ACTIVATION = Scale("surprise in bits", 0, 10, 20), Scale("tanh(c)", -1, 1, 21)


def lines(text, values, width=80, scale=SURPRISE, encoding="utf-8"):
    return list(paint(zip(text, values, strict=True), scale, width=width, encoding=encoding))


def background(line, place):
    """The colour behind a character, None where it is not painted."""
    styles = [span.style for span in line.spans if span.start <= place < span.end]
    assert len(styles) <= 1
    return styles[0].bgcolor.get_truecolor() if styles and styles[0].bgcolor else None


def test_each_character_stands_on_its_colour():
    (line,) = lines("abcd", [0, 9.9, 3, float("nan")])
    assert line.plain == "abcd"
    assert [background(line, place) for place in range(4)] == [
        None, SURPRISE.colour_on_any(19), SURPRISE.colour_on_any(6), None
    ]  # fmt: skip
    assert line.spans[0].style.color.get_truecolor() == LIGHT_INK


def test_neighbours_of_a_colour_are_written_together():
    (line,) = lines("aaabbb", [5, 5, 5, 9, 9, 9])
    assert [(span.start, span.end) for span in line.spans] == [(0, 3), (3, 6)]


def test_lines_are_folded_and_hostile_text_is_named():
    assert [line.plain for line in lines("ab\ncdef", [1] * 7, width=3)] == ["ab↵", "cde", "f"]
    (line,) = lines("\x1b[31m\t\u202e\x9b", [9] * 8)
    assert line.plain == "U+001B[31m⇥U+202EU+009B"
    (line,) = lines("é", [9], encoding="ascii")
    assert line.plain == "\\xe9"


def test_cold_and_warm():
    (line,) = lines("abc", [-1, 0, 1], scale=ACTIVATION)
    assert background(line, 0) == ACTIVATION.colour_on_any(0)
    assert background(line, 1) is None
    assert background(line, 2) == ACTIVATION.colour_on_any(20)


@pytest.mark.parametrize("scale", [SURPRISE, ACTIVATION])
def test_the_legend_has_every_step(scale):
    line = legend(scale)
    assert line.plain == f"{scale.name}: {scale.low:g} {' ' * scale.levels} {scale.high:g}"
    begin = len(f"{scale.name}: {scale.low:g} ")
    assert [background(line, begin + n) for n in range(scale.levels)] == list(
        map(scale.colour_on_any, range(scale.levels))
    )


@pytest.mark.parametrize("scale", [SURPRISE, ACTIVATION])
def test_painted_steps_differ_from_each_other_and_from_light_and_dark(scale):
    colours = [scale.colour_on_any(level) for level in range(scale.levels)]
    painted = [colour for colour in colours if colour is not None]
    assert colours[scale.neutral] is None
    assert len(set(painted)) == len(painted) >= 0.7 * scale.levels
    for colour in painted:
        assert max(abs(part - other) for part, other in zip(colour, LIGHT_BACKGROUND, strict=True)) > 60
        assert max(abs(part - other) for part, other in zip(colour, DARK_BACKGROUND, strict=True)) > 60


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_where_a_terminal_has_them_and_the_user_wants_them(environment, expected):
    console = Console(file=io.StringIO(), force_terminal=True, _environ=environment)
    assert has_colours(console) == expected


def test_no_colours_in_a_file_unless_forced():
    assert not has_colours(Console(file=io.StringIO(), _environ={"TERM": "xterm-256color"}))
    assert has_colours(Console(file=io.StringIO(), _environ={"TERM": "xterm-256color", "FORCE_COLOR": "1"}))
    forced = {"TERM": "xterm-256color", "FORCE_COLOR": "1", "NO_COLOR": "1"}
    assert not has_colours(Console(file=io.StringIO(), _environ=forced))
