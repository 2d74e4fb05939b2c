"""Scores by character lose nothing, however they are cut, and the worst places are the most surprising ones."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from charjax.analysis import scored_characters
from charjax.analysis.score import ScoredPiece
from charjax.analysis.scored_characters import Alternatives, Characters, Totals, characters
from charjax.analysis.worst_places import AROUND, STRETCH, WorstPlaces
from charjax.data.vocab import Vocab
from charjax.errors import UserError

ASCII, BYTES = Vocab.ascii(), Vocab.bytes()


def scored(ids, nats=None, begins=(0,), sizes=None, top=2):
    """Scores of a text in pieces of some sizes; the most likely ids are always 97 and 98."""
    ids = np.asarray(ids)
    nats = np.arange(len(ids)) / 8 if nats is None else nats
    flags = np.isin(np.arange(len(ids)), begins)
    top_ids = np.tile(np.arange(97, 97 + top, dtype=np.int32), (len(ids), 1))
    top_probs = np.tile(np.float32([0.5, 0.25, 0.125][:top]), (len(ids), 1))
    whole = ScoredPiece(ids, np.asarray(nats, np.float32), flags, top_ids, top_probs)
    edges = [0, *np.cumsum([len(ids)] if sizes is None else sizes)]
    return [ScoredPiece(*(values[a:b] for values in whole)) for a, b in itertools.pairwise(edges)]


def joined(blocks):
    return Characters(*map(np.concatenate, zip(*blocks, strict=True)))


# ---- characters


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_bytes_become_characters(monkeypatch, block):
    monkeypatch.setattr(scored_characters, "BLOCK", block)
    ids = np.frombuffer("aé\n日".encode() + b"\xff\xe6", np.uint8)
    nats = [9, 1, 2, 3, 4, 5, 1, 8, 16]
    found = joined(characters(BYTES, scored(ids, nats, sizes=[1] * len(ids))))
    assert found.text() == "aé\n日\udcff\udce6"
    np.testing.assert_array_equal(found.nats, [math.nan, 3, 3, 10, 8, 16])
    assert found.counted.tolist() == [0, 2, 1, 3, 1, 1]
    assert found.sizes.tolist() == [1, 2, 1, 3, 1, 1]
    # The second byte of each surprised most.
    assert found.ids.tolist() == [ord("a"), 0xA9, 10, 0x97, 0xFF, 0xE6]
    assert found.begins.tolist() == [True] + [False] * 5
    assert list(zip(found.lines.tolist(), found.columns.tolist(), strict=True)) == [
        (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)
    ]  # fmt: skip


@given(st.binary(min_size=1, max_size=40), st.data())
def test_pieces_do_not_matter(content, data):
    ids = np.frombuffer(content, np.uint8)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    sizes = np.diff([0, *cuts, len(ids)])
    text = content.decode("utf-8", errors="surrogateescape")
    for vocab, expected in ((BYTES, text), (Vocab.from_text("".join(map(chr, range(256)))), content.decode("latin-1"))):
        found = joined(characters(vocab, scored(ids, sizes=sizes)))
        whole = joined(characters(vocab, scored(ids)))
        for mine, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(mine, other)
        assert found.text() == expected
        before = [expected[:n] for n in range(len(expected))]
        assert found.lines.tolist() == [1 + text.count("\n") for text in before]
        assert found.columns.tolist() == [len(text) - text.rfind("\n") for text in before]
        assert np.nansum(found.nats) == pytest.approx(np.arange(len(ids)).sum() / 8)


def test_a_character_whose_first_byte_begins_a_document_counts_by_the_others():
    found = joined(characters(BYTES, scored(np.frombuffer("é".encode(), np.uint8), [9, 2])))
    assert (found.nats.tolist(), found.counted.tolist(), found.ids.tolist()) == ([2], [1], [0xA9])


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="predictions are not finite; train the model again"):
        list(characters(ASCII, scored([65, 66], [0, math.nan])))


def test_no_text_has_no_characters():
    assert not list(characters(BYTES, []))


def test_what_was_expected_leaves_the_character_itself_out():
    (found,) = characters(ASCII, scored(ASCII.encode("xab\n"), top=3))
    of = Alternatives(ASCII, 2).of
    assert of(found, 0) == [("a", 0.5), ("b", 0.25)]
    assert of(found, 1) == [("b", 0.25), ("c", 0.125)]
    assert of(found, 2) == [("a", 0.5), ("c", 0.125)]
    assert Alternatives(ASCII, 0).of(found, 0) == []


def test_ids_have_names():
    assert [Alternatives(BYTES, 1).name(number) for number in (10, 65, 0x80, 0xFF)] == ["↵", "A", "0x80", "0xFF"]
    assert Alternatives(Vocab.from_text("é\n日"), 1).name(2) == "日"


# ---- totals


def total(vocab, ids, **options):
    totals = Totals()
    for block in characters(vocab, scored(ids, **options)):
        totals.add(block)
    return totals


def test_a_documents_first_character_does_not_count():
    totals = total(ASCII, ASCII.encode("ab\ncd"), nats=[100, 1, 2, 100, 3], begins=(0, 3))
    assert (totals.characters, totals.documents, totals.counted) == (5, 2, 3)
    assert totals.loss == 2
    assert math.isnan(total(ASCII, ASCII.encode("a")).loss)


def test_bytes_of_characters_are_counted():
    text = "aé日\U0001f600"
    chars, raw = total(Vocab.from_text(text), Vocab.from_text(text).encode(text)), total(BYTES, BYTES.encode(text))
    assert (chars.characters, chars.ids, chars.bytes) == (raw.characters, 4, 10) == (4, 4, raw.bytes)
    assert (chars.counted, chars.counted_characters, chars.counted_bytes) == (3, 3, 9)
    assert (raw.ids, raw.counted, raw.counted_characters, raw.counted_bytes) == (10, 9, 3, 9)


# ---- places


def worst(text, nats, number, sizes=None, vocab=ASCII):
    found = WorstPlaces(number, Alternatives(vocab, 2))
    for block in characters(vocab, scored(vocab.encode(text), nats, sizes=sizes)):
        found.add(block)
    return found.places()


def test_a_place_comes_with_the_text_around_it(monkeypatch):
    monkeypatch.setattr(scored_characters, "BLOCK", 1)
    text = "\n".join(f"line {n}" for n in range(40))
    nats = np.where(np.arange(len(text)) == 100, 5, 1)
    for sizes in (None, [50, 60, len(text) - 110], [101] + [1] * (len(text) - 101), [1] * len(text)):
        (place,) = worst(text, nats, 1, sizes)
        assert (place.character, place.nats, place.byte) == (text[100], 5, "")
        assert (place.line, place.column) == (text[:100].count("\n") + 1, 100 - text[:100].rfind("\n"))
        assert place.before == text[100 - AROUND : 100]
        assert place.after == text[101 : 101 + AROUND]
        assert place.expected == [("a", 0.5), ("b", 0.25)]


def test_what_is_around_a_place_ends_with_the_text():
    (place,) = worst("abcd", [9, 1, 2, 1], 1)
    assert (place.before, place.character, place.after) == ("ab", "c", "d")


def test_a_character_of_bytes_is_one_place():
    (place, *_) = worst("aé日b", [9, 1, 4, 2, 2, 2, 1], 9, vocab=BYTES)
    assert (place.character, place.byte, place.nats) == ("日", "0xE6", 6)


def reference(text, nats, number):
    """The most surprising of each stretch by looking at the whole text at once."""
    best, line, line_start, word_start = {}, 1, 0, 0
    for at, character in enumerate(text):
        before = text[max(0, at - AROUND) : at]
        word_start = at - len(before) + max(before.rfind(space) for space in " \t\n") + 1
        key = (line, (word_start - line_start) // STRETCH) if word_start >= line_start else (line, 0)
        if at and (key not in best or nats[at] > best[key][0]):
            best[key] = (nats[at], -at)
        if character == "\n":
            line, line_start = line + 1, at + 1
    return [(nats, -at) for nats, at in sorted(best.values(), reverse=True)[:number]]


@given(
    st.lists(st.sampled_from(["word", " ", "\n", "a", "x" * 70, "some words "]), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 50),
    st.integers(0, 99),
)
def test_places_are_those_of_the_whole_text(words, number, size, seed):
    text = "".join(words)
    # Few different numbers, so that some are equal: the first of them counts.
    nats = np.random.default_rng(seed).integers(0, 12, len(text)).astype(np.float64)
    sizes = [size] * (len(text) // size) + [len(text) % size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scored_characters, "BLOCK", 1)
        found = worst(text, nats, number, sizes)
    starts = np.cumsum([0] + [len(line) + 1 for line in text.split("\n")])
    assert [(p.nats, int(starts[p.line - 1]) + p.column - 1) for p in found] == reference(text, nats, number)


def test_a_garbled_stretch_does_not_fill_the_list():
    text = "xkcdqvbn" * 3 + "\n" + "a plain line of words\n" * 3
    nats = np.concatenate([np.full(25, 20.0), np.linspace(1, 2, len(text) - 25)])
    places = worst(text, nats, 3)
    assert [place.line for place in places] == [1, 4, 3]


def test_zero_places():
    assert worst("abc", [1, 2, 3], 0) == []
    assert worst("a", [1], 3) == []
