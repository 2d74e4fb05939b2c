"""`charjax neurons`: it finds the units made by hand, colors the text by them, and mistakes are one line."""

import html
import re

import jax
import pytest
from helpers.command_line import fails, shows
from helpers.neuron_models import COUNTER, LATCH, PROSE, hand_made
from helpers.painted_page import PaintedPage
from helpers.small_run import save_run

from charjax import Corpus
from charjax.analysis.activations import activations
from charjax.analysis.features import FEATURES
from charjax.data.vocab import Vocab
from charjax.rendering.visible_text import name_character

TEXT = PROSE * 6


def save(folder, vocab, **changes):
    """Saves a run with a model made by hand."""
    model, params = hand_made(vocab)
    return save_run(
        folder, Corpus.from_text("plain text, of any kind\n" * 9, vocab=vocab), model, {**params, **changes}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("neurons") / "run", Vocab.ascii())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(TEXT)
    return path


def rows(out):
    """Returns the table: the first word of each line, and the rest."""
    lines = out.split("\n\n")[1].splitlines()
    return dict(line.split(maxsplit=1) for line in lines[1:])


# ---- the table


def test_it_names_the_units_made_for_quotes_and_lines(run, text, capsys):
    out = shows(capsys, "neurons", run, text, "--chars", "0")
    found = rows(out)
    assert list(found) == [feature.name for feature in FEATURES]
    assert f"  {LATCH} +1.00  " in found["quotes"]
    assert f"  {COUNTER} +1.00  " in found["line-position"]
    assert f"the first {len(TEXT):,} of {len(TEXT):,} characters" in out
    assert "tanh(c) under each character" not in out


def test_features_that_the_text_lacks_are_marked(run, tmp_path, capsys):
    path = tmp_path / "plain.txt"
    path.write_text("plain words, and no more than that\n" * 9 + "(but once)")
    found = rows(shows(capsys, "neurons", run, path, "--chars", "0"))
    assert found["quotes"].endswith("never")
    assert found["parentheses"].endswith("too rare: it changes in too few places")
    assert "nan" not in "".join(found.values())


def test_chosen_features_and_how_many_units(run, text, capsys):
    found = rows(shows(capsys, "neurons", run, text, "--chars", "0", "--feature", "digits, quotes", "--top", "4"))
    assert list(found) == ["digits", "quotes"]
    assert len(re.findall(r"0:\d [+-]\d\.\d\d", found["quotes"])) == 4


def test_chosen_units_are_listed_with_their_features(run, text, capsys):
    found = rows(shows(capsys, "neurons", run, text, "--chars", "0", "--unit", f"{COUNTER}, {LATCH}"))
    assert list(found) == [str(COUNTER), str(LATCH)]
    assert found[str(LATCH)].startswith("quotes +0.99, ")
    assert found[str(COUNTER)].startswith("line-position +1.00, ")


def test_the_part_that_is_searched_is_bounded(run, text, capsys):
    assert f"the first 200 of {len(TEXT):,} characters" in shows(
        capsys, "neurons", run, text, "--chars", "0", "--read", "200"
    )


# ---- colors


def test_marks_under_the_text_show_the_unit(run, text, capsys):
    out = shows(capsys, "neurons", run, text, "--unit", LATCH, "--chars", "26")
    assert f"unit {LATCH}: quotes +0.99" in out
    shown, below = out.splitlines()[-2:]
    assert shown == TEXT[:26]
    # After the closing quote the latch is at -1; before the first it is 0.
    assert re.fullmatch("▅{8}[▇█]{9}▁{9}", below)


def test_the_best_unit_colors_the_text_by_default(run, text, capsys):
    out = shows(capsys, "neurons", run, text)
    assert out.count("tanh(c) under each character") == 1
    assert f"unit {LATCH}: quotes +1.00" in out
    assert shows(capsys, "neurons", run, text, "--feature", "digits,quotes").count("tanh(c) under each character") == 2


def test_the_colored_part_contains_the_feature(run, tmp_path, capsys):
    path = tmp_path / "late.txt"
    path.write_text("nothing of the kind\n" * 60 + TEXT + TEXT)
    out = shows(capsys, "neurons", run, path, "--feature", "quotes", "--chars", "100")
    assert int(re.search(r"from character ([\d,]+) on", out)[1].replace(",", "")) >= 1200
    assert '"' in out.partition("from character")[2]
    out = shows(capsys, "neurons", run, path, "--feature", "quotes", "--chars", "20", "--start", "40")
    assert out.splitlines()[-2] == "nothing of the kind↵"


def test_a_text_without_features_is_not_colored(run, tmp_path, capsys):
    path = tmp_path / "plain.txt"
    path.write_text("a" * 50)
    out = shows(capsys, "neurons", run, path, "--feature", "quotes")
    assert "choose units to color the text by" in out
    assert "▅" not in out


def test_hostile_text_stays_text(run, tmp_path, capsys):
    path, page = tmp_path / "hostile.txt", tmp_path / "page.html"
    hostile = '<script>alert("1")</script></div>&amp;\x1b]0;title\x07\x1b[31m\x00 "so" <b title=x>\r\n\n'
    path.write_text(hostile * 8, newline="")
    out = shows(capsys, "neurons", run, path, "--html", page)
    assert not set(out) & set("\x1b\x07\x00\r")
    assert "U+001B]0;title" in out
    written = page.read_text()
    assert "<script>alert" not in written
    assert written.count("<script>") == 1
    colored = re.sub("<[^>]*>", "", written.partition('id="text"')[2])
    assert '<script>alert("1")</script></div>&amp;' in html.unescape(colored)
    assert "<b title=x>" not in written
    assert not set(written) & set("\x1b\x07\x00")


# ---- the page


def test_the_page_has_the_text_once_per_unit_with_every_value(run, text, tmp_path, capsys):
    page = tmp_path / "page.html"
    shows(capsys, "neurons", run, text, "--unit", f"{LATCH},{COUNTER}", "--chars", "60", "--html", page)
    written = page.read_text()
    assert re.findall("<h2>unit ([^:]+:[^:]+):", written) == [str(LATCH), str(COUNTER)]
    model, params = hand_made(Vocab.ascii())
    values = activations(model, params, Vocab.ascii().encode(TEXT)[None, :60])[0, :, 0]
    tips = PaintedPage(written).tips
    for unit, shown in ((LATCH, tips[:60]), (COUNTER, tips[60:])):
        assert len(shown) == 60
        for (character, tip), expected, value in zip(shown, TEXT, values[:, unit.unit].tolist(), strict=False):
            name, number = tip.split("  ")
            assert (character, name) == (expected, name_character(expected))
            assert float(number) == pytest.approx(value, abs=6e-4)
    assert f"{LATCH}   quotes +0.99" in html.unescape(written.partition("<pre>")[2].partition("</pre>")[0])


def test_the_page_colors_by_the_best_unit_of_each_feature(run, text, tmp_path, capsys):
    page = tmp_path / "page.html"
    shows(capsys, "neurons", run, text, "--html", page)
    headings = re.findall("<h2>(.*?)</h2>", page.read_text())
    assert headings[0].startswith(f"unit {LATCH}: quotes +1.00")
    assert any(heading.startswith(f"unit {COUNTER}: line-position") for heading in headings)
    assert len({heading.split()[1] for heading in headings}) == len(headings)
    assert all(max(abs(float(r)) for r in re.findall(r"[+-][\d.]+", heading)) >= 0.2 for heading in headings)


# ---- other alphabets


def test_bytes_are_shown_as_the_characters_they_make(tmp_path, capsys):
    run = save(tmp_path / "run", Vocab.bytes())
    path, page = tmp_path / "bytes.txt", tmp_path / "page.html"
    path.write_bytes('Ein "schöner" Tag\n\n'.encode() * 9 + b"\xff" * 3)
    out = shows(capsys, "neurons", run, path, "--html", page)
    assert f"  {LATCH} +1.00" in rows(out)["quotes"]
    assert 'Ein "schöner" Tag↵' in out
    assert "0xFF" in page.read_text()


# ---- mistakes


@pytest.mark.parametrize("unit", ["1:0", "0:5", "-1:0", "0:-1", "0:999999"])
def test_a_unit_out_of_range(run, text, capsys, unit):
    message = fails(capsys, "neurons", run, text, "--unit", unit)
    assert unit in message
    assert "units 0 to 4" in message


@pytest.mark.parametrize("unit", ["x", "3", "0:", "0:1:2", "0.5:1", "0:٣", "0:99999999999"])
def test_strings_that_are_not_units(run, text, capsys, unit):
    assert fails(capsys, "neurons", run, text, "--unit", f"0:1,{unit}") == (
        f"--unit: {unit!r} is not a unit; use LAYER:UNIT, both zero-based, e.g. 0:12"
    )


def test_an_unknown_feature(run, text, capsys):
    message = fails(capsys, "neurons", run, text, "--feature", "quotes,line-postion")
    assert "unknown feature 'line-postion', did you mean line-position?; choose from quotes, " in message


@pytest.mark.parametrize(
    ("flag", "value", "least"), [("--top", 0, 1), ("--chars", -1, 0), ("--read", 1, 2), ("--start", -5, 0)]
)
def test_numbers_out_of_range(run, text, capsys, flag, value, least):
    message = fails(capsys, "neurons", run, text, flag, value)
    assert f"{flag} must be a whole number of at least {least}, not {value}" in message


def test_a_start_beyond_the_end(run, text, capsys):
    assert f"--start must be less than {len(TEXT):,}, the length of" in fails(
        capsys, "neurons", run, text, "--start", 10**6
    )


def test_characters_that_the_vocabulary_lacks(run, text, capsys):
    text.write_text("so\ncafé")
    assert "line 2, column 4: 'é' (U+00E9) is not in the ascii vocabulary" in fails(capsys, "neurons", run, text)


def test_files_that_cannot_be_read(run, tmp_path, capsys):
    assert "does not exist" in fails(capsys, "neurons", run, tmp_path / "nowhere.txt")
    (tmp_path / "one.txt").write_text("a")
    assert "has 1 character" in fails(capsys, "neurons", run, tmp_path / "one.txt")


def test_a_model_that_went_wrong(tmp_path, text, capsys):
    _, params = hand_made(Vocab.ascii())
    broken = jax.tree.map(lambda leaf: leaf * float("nan"), params["layer_0"])
    run = save(tmp_path / "run", Vocab.ascii(), layer_0=broken)
    assert "that are not finite; train the model again" in fails(capsys, "neurons", run, text)


def test_a_page_does_not_replace_the_text(capsys, run, text):
    assert "is the text itself" in fails(capsys, "neurons", run, text, "--html", text)
    assert text.read_text() == TEXT
