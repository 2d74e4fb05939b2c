"""Vocab: characters to ids and back, for every alphabet."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from charjax.data.vocab import Vocab, show_characters
from charjax.errors import UserError

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ASCII_TEXT = st.text(st.characters(max_codepoint=127))
VOCABS = [Vocab.ascii(), Vocab.from_text("aé\n😀z"), Vocab.bytes()]


@given(ASCII_TEXT)
def test_ascii_ids_are_the_codes(text):
    ids = Vocab.ascii().encode(text)
    assert ids.tolist() == [ord(character) for character in text]
    assert Vocab.ascii().decode(ids) == text


@given(ANY_TEXT)
def test_chars_ids_are_positions_among_the_sorted_characters(text):
    vocab = Vocab.from_text(text)
    alphabet = sorted(set(text))
    assert (vocab.size, vocab.characters) == (len(alphabet), "".join(alphabet))
    ids = vocab.encode(text)
    assert ids.tolist() == [alphabet.index(character) for character in text]
    assert vocab.decode(ids) == text


@given(ANY_TEXT)
def test_bytes_ids_are_the_utf8_bytes(text):
    ids = Vocab.bytes().encode(text)
    assert ids.tobytes() == text.encode()
    assert Vocab.bytes().decode(ids) == text


@given(st.binary())
def test_bytes_that_are_not_utf8_can_be_given_as_surrogates(content):
    text = content.decode("utf-8", errors="surrogateescape")
    assert Vocab.bytes().encode(text).tobytes() == content


@given(ANY_TEXT, ANY_TEXT)
def test_unknown_lists_what_encode_rejects(known, text):
    vocab = Vocab.from_text(known)
    unknown = vocab.unknown(text)
    assert set(unknown) == set(text) - set(known)
    if unknown:
        with pytest.raises(UserError, match=f"U\\+{ord(unknown[0]):04X}"):
            vocab.encode(text)


@pytest.mark.parametrize(("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (70000, np.uint32)])
def test_ids_have_the_smallest_type_that_fits(size, dtype):
    text = "".join(chr(0x10000 + position) for position in range(size))
    vocab = Vocab.from_text(text)
    assert vocab.dtype == dtype
    ids = vocab.encode(text)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(size))


def test_a_long_text_is_encoded_in_chunks(monkeypatch):
    monkeypatch.setattr("charjax.data.vocab.CHUNK", 3)
    text = "aé😀z\n" * 7
    vocab = Vocab.from_text(text)
    assert vocab.decode(vocab.encode(text)) == text


@pytest.mark.parametrize("vocab", VOCABS, ids=lambda vocab: vocab.kind)
@pytest.mark.parametrize("ids", [[-1], [1000], [0.5], [[0, 1]]], ids=str)
def test_invalid_ids_are_rejected(vocab, ids):
    with pytest.raises(ValueError, match="ids must"):
        vocab.decode(np.array(ids))


@pytest.mark.parametrize("vocab", VOCABS, ids=lambda vocab: vocab.kind)
def test_the_empty_text(vocab):
    assert vocab.encode("").shape == (0,)
    assert vocab.decode([]) == ""


def test_incomplete_utf8_becomes_the_replacement_character():
    assert Vocab.bytes().decode(np.frombuffer("né".encode()[:-1], np.uint8)) == "n\ufffd"


@pytest.mark.parametrize("vocab", VOCABS, ids=lambda vocab: vocab.kind)
def test_the_dict_round_trips(vocab):
    assert Vocab.from_dict(vocab.to_dict()) == vocab


@pytest.mark.parametrize(
    "values",
    [
        None, [], "ascii", {}, {"kind": "latin"}, {"kind": "chars"}, {"kind": "chars", "characters": ""},
        {"kind": "chars", "characters": "ba"}, {"kind": "chars", "characters": "aa"},
        {"kind": "chars", "characters": ["a"]}, {"kind": "ascii", "characters": "a"},
    ],
    ids=str,
)  # fmt: skip
def test_a_dict_that_is_not_a_vocabulary_is_rejected(values):
    with pytest.raises(UserError, match="vocabulary"):
        Vocab.from_dict(values)


@pytest.mark.parametrize("vocab", VOCABS, ids=lambda vocab: vocab.kind)
def test_ids_end_at_the_size(vocab):
    assert len(vocab.decode([vocab.size - 1])) == 1
    with pytest.raises(ValueError, match=rf"must be in \[0, {vocab.size}\)"):
        vocab.decode([vocab.size])


def test_lone_surrogates_round_trip():
    text = "a\ud800b\udfff"
    vocab = Vocab.from_text(text)
    assert vocab.decode(vocab.encode(text)) == text


def test_ascii_ends_at_128():
    assert Vocab.ascii().unknown("\x7f\x80\xff") == "\x80\xff"


@pytest.mark.parametrize("characters", [None, [], 0], ids=str)
@pytest.mark.parametrize("kind", ["ascii", "bytes"])
def test_only_the_empty_text_means_no_characters(kind, characters):
    with pytest.raises(UserError, match="vocabulary"):
        Vocab.from_dict({"kind": kind, "characters": characters})


def test_up_to_five_characters_are_shown():
    assert show_characters("abcde") == ", ".join(f"{name!r} (U+{ord(name):04X})" for name in "abcde")


def test_more_than_five_characters_are_counted():
    assert show_characters("abcdef") == show_characters("abcde") + " and 1 more"


def test_encoding_takes_little_more_memory_than_the_text():
    text = "The quick brown fox.\n" * 500_000
    tracemalloc.start()
    Vocab.ascii().encode(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(text)


@pytest.mark.parametrize("vocab", [Vocab.ascii(), Vocab.bytes(), Vocab.from_text("The quick brown fox.\n")])
def test_decoding_takes_little_more_memory_than_the_text(vocab):
    ids = np.zeros(10_000_000, np.uint8)
    tracemalloc.start()
    text = vocab.decode(ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(text) == len(ids)
    assert peak < 2.5 * len(text)


def test_characters_out_of_order_are_rejected():
    with pytest.raises(UserError, match="in code point order"):
        Vocab("chars", "ba")
