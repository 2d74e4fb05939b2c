"""Text made safe to show."""

import pytest
from helpers.progress import HOSTILE

from charjax.rendering.visible_text import name_character, one_line, printable


def test_printable_shows_control_characters():
    assert printable(HOSTILE) == "[bold]art[/] ␛[31mred␛[0m␇ \\x9b2J a␍b\n\\u202eevil :smile: ␡"
    assert printable("tab\tkept\nπ日\u200d\u2028\ud800\udc9f") == "tab\tkept\nπ日\u200d\\u2028\\ud800\\x9f"


def test_printable_keeps_to_the_encoding():
    assert printable("π é\x1b", "latin-1") == "\\u03c0 é\\u241b"


def test_one_line_has_no_line_breaks():
    assert one_line("a\nb\r\n\x1b") == "a\\nb\\n␛"


@pytest.mark.parametrize(
    ("character", "name"),
    [("a", "a"), (" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("↵", "U+21B5"), ("\0", "U+0000"), ("\u202e", "U+202E"),
     ("\udcff", "0xFF"), ("\ud800", "U+D800"), ("é", "é"), ("\xa0", "U+00A0")],
)  # fmt: skip
def test_every_character_has_a_visible_name(character, name):
    assert name_character(character) == name
