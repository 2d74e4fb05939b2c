"""Pages of colored text: hostile text stays text, and nothing of it is lost."""

import base64
import hashlib
import itertools
import math
import os
import re
import resource
import stat
from pathlib import Path

import pytest
from helpers.painted_page import PaintedPage

from charjax.errors import UserError
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_page import PageWriter, Painted
from charjax.rendering.html_template import Curve, Excerpt, ExcerptTable

SURPRISE = Scale("surprise in bits", 0, 10, 20)
ACTIVATION = Scale("activation", -1, 1, 21)
ELEMENTS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "table",
    "tr",
    "th",
    "td",
    "p",
    "b",
    "div",
    "script",
}
HOSTILE = (
    "<script>alert(1)</script> \"quoted\" & 'so' ]]> <!-- --> &amp; &#65; </div></b> <b title=x onclick=alert(1)>"
    "\r\n\t\x00\x1b[31m\x7f\x85\u2028\u2029\u202eright to left\u2066\u200d\ufeff\ufffe\udc80\ud800 é \U0001f600 \xa0"
)


def write(path, characters, scale=SURPRISE, **options):
    with PageWriter(path, scale) as page:
        page.paint(characters)
        page.finish(**{"title": "A text", "facts": [], **options})
    return path.read_bytes().decode("utf-8")


def test_a_hostile_text_stays_text(tmp_path):
    characters = [Painted(c, n % 12, [(HOSTILE.replace("\n", ""), 0.5)]) for n, c in enumerate(HOSTILE)]
    page = write(tmp_path / "x.html", characters, title=HOSTILE, facts=[(HOSTILE, HOSTILE)], note=HOSTILE)
    reader = PaintedPage(page)
    assert reader.text == HOSTILE
    assert not reader.open
    assert set(reader.elements) == ELEMENTS
    assert reader.elements.count("script") == 1
    # Letters for colors, the class of invisible characters, and the title of a step of the legend.
    assert {name for tag, name, _ in reader.attributes if tag == "b" and len(name) > 1} == {"class", "title"}
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", page)


def test_excerpts_above_the_text_link_to_its_lines(tmp_path):
    excerpts = [
        Excerpt(2, "2:1", ("9.00 bits", "0.2%"), "a↵", "b", 9.0, "c", "d 50%"),
        Excerpt(None, HOSTILE, (HOSTILE,), HOSTILE, HOSTILE, 0.0, HOSTILE, HOSTILE),
    ]
    with PageWriter(tmp_path / "x.html", SURPRISE) as page:
        page.line(1)
        page.paint([Painted("a", 0), Painted("\n", 0)])
        page.line(2)
        page.paint([Painted("b", 9), Painted("c", 0)])
        page.finish(title="t", facts=[("loss", "1")], excerpts=ExcerptTable(HOSTILE, ("where", HOSTILE), excerpts))
    written = (tmp_path / "x.html").read_bytes().decode()
    assert '<i id="1"></i>a\n<i id="2"></i><b s>b</b>c</div>' in written
    reader = PaintedPage(written)
    assert reader.text == "a\nbc"
    assert not reader.open
    assert set(reader.elements) == ELEMENTS | {"h2", "a", "i"}
    assert [value for tag, name, value in reader.attributes if tag == "a"] == ["#2"]
    assert '<td class="excerpt">a↵<b s>b</b>c</td><td>d 50%</td>' in written
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", written)


def test_uncolored_characters_and_equal_neighbors_share_an_element(tmp_path):
    characters = [Painted(c, 0) for c in "plain <"] + [Painted(c, 9.9, [(c, 0.1)]) for c in "both"] + [Painted("x", 9)]
    page = write(tmp_path / "x.html", characters)
    assert PaintedPage(page).pieces == [("both", "t"), ("x", "s")]
    assert ">plain &lt;<b t>both</b><b s>x</b></div>" in page


def test_white_space_is_marked_where_it_is_colored(tmp_path):
    page = write(
        tmp_path / "x.html", [*(Painted(c, 0) for c in " \t\n"), Painted(" ", 5), Painted("\t", 5), Painted("\n", 5)]
    )
    assert PaintedPage(page).pieces == [(" ", "k"), ("\t", "k T"), ("\n", "k N")]


def test_every_mark_has_a_style(tmp_path):
    characters = [Painted("\t", 5), Painted("\n", 5), Painted("\0", 5), Painted("\u200d", 5)]
    page = write(tmp_path / "x.html", characters)
    assert [names for _, names in PaintedPage(page).pieces] == ["k T", "k N", "k X", "k Z"]
    style = PaintedPage(page).content["style"]
    assert all(re.search(rf"^\.{mark}\b.*{{.+}}$", style, re.MULTILINE) for mark in "TNXZ")


def test_nan_is_not_colored(tmp_path):
    reader = PaintedPage(write(tmp_path / "x.html", [Painted("a", math.nan), Painted("b", 0.5)], ACTIVATION))
    assert reader.pieces == [("b", "p")]
    assert reader.tips == [("a", "a  nothing comes before it, so it does not count"), ("b", "b  +0.500")]


def test_what_was_expected_is_kept_for_any_number_of_names(tmp_path):
    """In whole percent, and above 50 in steps of two."""
    names = [f"{chr(0x4E00 + n)}" for n in range(200)]
    shares = {0.001: "<1%", 0.009: "1%", 0.344: "34%", 0.5: "50%", 0.75: "74%", 0.999: "100%"}
    characters = [Painted("a", 12.345, [(name, share)]) for name in names for share in shares]
    characters.append(Painted("b", 1000.0, [("<", 0.25)], "0xE6"))
    with PageWriter(tmp_path / "x.html", SURPRISE, bits=True) as page:
        page.paint(characters)
        page.finish(title="t", facts=[])
    reader = PaintedPage((tmp_path / "x.html").read_text())
    expected = [("a", f"a  12.35 bits  0.0192%\n{name}  {said}") for name in names for said in shares.values()]
    assert reader.tips[:-1] == [(c, tip.replace("12.35", "12.35")) for c, tip in expected]
    assert reader.tips[-1][1].endswith(
        "bits  " + reader.tips[-1][1].split("bits  ")[1].split("\n")[0] + "\ninstead of 0xE6:\n<  25%"
    )


def test_a_curve_is_drawn_with_gaps(tmp_path):
    curve = Curve("Surprise <along> the text", [1.0, 2.0, math.nan, 4.0, 0.0])
    page = write(tmp_path / "x.html", [Painted("a", 1)], curve=curve)
    assert '<path d="M0 75.0L1 50.0M3 0.0L4 100.0"' in page
    assert "Surprise &lt;along&gt; the text; from 0 to 4" in page
    PaintedPage(page)


def test_the_policy_allows_this_script_and_style_and_nothing_else(tmp_path):
    page = write(tmp_path / "x.html", [Painted("a", 5)])
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for name in ("script", "style"):
        digest = hashlib.sha256(re.search(f"<{name}>(.*)</{name}>", page, re.DOTALL)[1].encode()).digest()
        assert rules.pop(f"{name}-src") == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not rules
    assert "http:" not in page
    assert "https:" not in page
    assert "innerHTML" not in page


def test_facts_and_note_are_above_the_text(tmp_path):
    page = write(tmp_path / "x.html", [Painted("a", 5)], facts=[("loss", "1.5 nats/char")], note="The first character.")
    assert "<tr><th>loss</th><td>1.5 nats/char</td></tr>" in page
    assert page.index("<h1>A text</h1>") < page.index("The first character.") < page.index('<div id="text"')


def test_text_is_written_as_it_comes(tmp_path):
    with PageWriter(tmp_path / "x.html", SURPRISE) as page:
        page.paint([Painted("a", 0), Painted("b", 0)])
        assert not list(tmp_path.iterdir())
        page.paint(itertools.repeat(Painted("c", 0), 3))
        page.finish(title="t", facts=[])
    assert PaintedPage((tmp_path / "x.html").read_text()).text == "abccc"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_page_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("old")
    path.chmod(0o640)

    def fails():
        yield Painted("a", 5)
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        write(path, fails())
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
    write(path, [Painted("a", 5)])
    assert path.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_failure_to_replace_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*paths):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "x.html", [])
    assert not list(tmp_path.iterdir())


def test_errors_name_the_page_that_was_asked_for(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"'/proc/self/x\.html'$"):  # where nobody can create a file
        PageWriter("/proc/self/x.html", SURPRISE)
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for size in (100, 10**5):  # which fail at the end and earlier
            with pytest.raises(OSError, match=r"File too large: 'x\.html'$"):
                write(Path("x.html"), [Painted("x", n % 10) for n in range(size)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_new_page_has_the_mode_of_any_new_file_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "other").write_text("")
    (tmp_path / "link").symlink_to("x.html")
    write(tmp_path / "link", [])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x.html").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_paths_where_no_page_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("file", "file/nowhere"):
        with pytest.raises(NotADirectoryError, match=rf"Not a directory: '{tmp_path}/{folder}/x\.html'"):
            PageWriter(tmp_path / folder / "x.html", SURPRISE)
    with pytest.raises(UserError, match="is a folder; choose a file"):
        PageWriter(tmp_path, SURPRISE)
    with pytest.raises(UserError, match="/dev/null is a pipe or device; choose a file"):
        PageWriter("/dev/null", SURPRISE)
