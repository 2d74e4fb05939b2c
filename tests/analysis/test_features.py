"""Features of a text after every character, whatever pieces the text comes in."""

import numpy as np
import pytest

from charjax.analysis.features import FEATURES, FeatureReader
from charjax.data.vocab import Vocab

NAMES = [feature.name for feature in FEATURES]


def values_of(name, text, vocab=None):
    """A feature after each character, as integers."""
    vocab = vocab or Vocab.from_text(text)
    return FeatureReader(vocab).read(vocab.encode(text))[NAMES.index(name)].astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("quotes", 'a "b" c', "0011000"),
        ("quotes", "a \u201cb\u201d c", "0011000"),
        ("quotes", '"a\nb" c', "1111000"),
        ("quotes", '"a\n\nb" c', "11100111"),
        ("parentheses", "a (b) c)", "00110000"),
        ("parentheses", ":( a\n\nb", "0111100"),
        ("brackets", "[a]\n(b)", "1100000"),
        ("parentheses", "f(g(x), y) z", "011111111000"),
        ("nesting", "a[(b)]}{", "01221001"),
        ("nesting", "{a(b}c)", "1122000"),
        ("nesting", "{[a\n\nb}", "1222110"),
        ("nesting", "((((((((", "12345555"),
        ("line-position", "ab\n\nc\r\nd", "12001101"),
        ("first-line", "ab\nc\n\nd\ne", "110001100"),
        ("indentation", "  a b\n\tc\n d", "12222011011"),
        ("sentence-position", "ab. c?\nd", "12012012"),
        ("word-position", "I can't 'be 2_x", "101234500120123"),
        ("capitalised", "The Cat sat", "11101110000"),
        ("capitals", "HAM 4 Let a_B", "1110001000000"),
        ("digits", "a 12.5", "001101"),
    ],
)
def test_values_of_features(name, text, expected):
    assert "".join(map(str, values_of(name, text))) == expected


def test_there_is_a_row_per_feature_and_binary_ones_are_0_or_1():
    text = 'A "test" (of [many])\n\n  THINGS, 42. \u00c4rger\u2026\n' * 3
    vocab = Vocab.from_text(text)
    found = FeatureReader(vocab).read(vocab.encode(text))
    assert (found.shape, found.dtype) == ((len(FEATURES), len(text)), np.float32)
    for feature, row in zip(FEATURES, found, strict=True):
        assert np.ptp(row) > 0, feature.name
        assert (set(row.tolist()) <= {0.0, 1.0}) == (feature.most == 1), feature.name
        assert row.max() <= feature.most
    assert len(set(NAMES)) == len(NAMES)


def test_large_counts_are_clipped():
    assert values_of("indentation", " " * 30 + "\n")[18:] == [19] + [20] * 11 + [0]


def test_pieces_add_up_to_the_whole():
    text = 'So "many (odd\n\n things) [HERE]". 12 and\n  on'
    vocab = Vocab.ascii()
    ids, reader = vocab.encode(text), FeatureReader(vocab)
    pieces = [reader.read(ids[at : at + 7]) for at in range(0, len(ids), 7)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), FeatureReader(vocab).read(ids))


def test_no_characters_are_no_columns():
    assert FeatureReader(Vocab.ascii()).read(np.zeros(0, np.uint8)).shape == (len(FEATURES), 0)


def test_features_do_not_look_ahead():
    text = 'One "two (three) four".\n  Five\n\nSIX'
    vocab = Vocab.ascii()
    whole = FeatureReader(vocab).read(vocab.encode(text))
    for end in range(1, len(text)):
        np.testing.assert_array_equal(FeatureReader(vocab).read(vocab.encode(text[:end])), whole[:, :end])


def test_bytes_of_longer_characters_are_letters():
    assert values_of("word-position", "caf\u00e9 x", Vocab.bytes()) == [1, 2, 3, 4, 5, 0, 1]
