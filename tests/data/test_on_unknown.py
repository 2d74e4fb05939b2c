"""Characters not in a vocabulary: an error, left out, or replaced by one that is."""

import logging

import numpy as np
import pytest
from hypothesis import given, strategies as st

from charjax.data import corpus as corpus_module, survey as survey_module, text_file, text_source
from charjax.data.corpus import read_ids, read_pieces
from charjax.data.vocab import Vocab, encode_context, stand_in
from charjax.errors import UserError

KNOWN = Vocab.from_text("abe?\n")
# Bytes that are not UTF-8 are foreign, too, each of them.
TEXT = st.text(st.sampled_from("ab\né€😀A\udcff"), min_size=1)


def without(text):
    return "".join(character for character in text if character in KNOWN.characters)


@given(TEXT, st.integers(1, 7), st.integers(1, 9), st.data())
def test_a_text_is_read_without_or_with_stand_ins(tmp_path_factory, text, reads, stride, data):
    path = tmp_path_factory.getbasetemp() / "foreign.txt"
    content = (text + "a").encode(errors="surrogateescape")
    path.write_bytes(content)
    text = content.decode(errors="surrogateescape")  # escapes side by side may be a character
    replaced = text.translate(dict.fromkeys(map(ord, "€😀"), "?") | {ord("é"): "e", ord("A"): "a"})
    replaced = "".join("?" if "\udc80" <= character <= "\udcff" else character for character in replaced)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "READ_BYTES", reads)
        patch.setattr(text_file, "INDEX_STRIDE", stride)
        patch.setattr(survey_module, "INDEX_STRIDE", stride)
        patch.setattr(corpus_module, "PIECE", 2 * stride)
        for on_unknown, expected in (("skip", without(text)), ("replace", replaced)):
            pieces = list(read_pieces(path, KNOWN, on_unknown=on_unknown))
            assert KNOWN.decode(np.concatenate(pieces)) == expected
            ids, _, _ = read_ids(path, KNOWN, memory_mb=0, on_unknown=on_unknown)
            part = slice(*sorted((data.draw(st.integers(0, len(expected))), data.draw(st.integers(0, len(expected))))))
            assert (len(ids), KNOWN.decode(ids[part])) == (len(expected), expected[part])
            assert KNOWN.decode(KNOWN.encode(text, on_unknown=on_unknown)) == expected


@pytest.mark.parametrize(
    ("known", "character", "expected"),
    [
        ("eE?", "é", "e"),
        ("e?", "É", "e"),
        ("'\"?", "\u2019", "'"),
        ("'\"?", "„", '"'),
        ("-?", "—", "-"),
        ("?. ", "…", "."),
        ("? a", "\u00a0", " "),
        ("? a", "日", "?"),
        (" ab", "日", " "),
        ("bc", "日", "b"),
        ("b?", "\n", "?"),
        ("s?", "ß", "s"),
        ("o?", "Ø", "o"),
    ],
)
def test_the_stand_in_is_one_similar_character(known, character, expected):
    assert stand_in(Vocab.from_text(known), character) == expected


def test_the_number_is_said_once(tmp_path, caplog):
    path = tmp_path / "text.txt"
    path.write_text("né né né\n" * 3)
    with caplog.at_level(logging.WARNING, logger="charjax"):
        list(read_pieces(path, "ascii", on_unknown="replace"))
        list(read_pieces(path, "ascii", on_unknown="skip"))
        list(read_pieces(path, "chars", on_unknown="skip"))
        encode_context(Vocab.ascii(), "né", "skip")
    lacks = "because the ascii vocabulary does not contain 'é' (U+00E9)"
    assert caplog.messages == [
        f"{path}: 9 characters were replaced, {lacks}",
        f"{path}: 9 characters were skipped, {lacks}",
        f"the text: 1 character was skipped, {lacks}",
    ]


def test_an_error_names_the_option_where_there_is_one(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("né")
    advice = ", or use --on-unknown skip or replace$"
    for action in (lambda: read_pieces(path, Vocab.ascii()), lambda: encode_context(Vocab.ascii(), "né", "error")):
        with pytest.raises(UserError, match=advice):
            action()
    for action in (lambda: read_ids(path, Vocab.ascii()), lambda: encode_context(Vocab.ascii(), "né")):
        with pytest.raises(UserError, match="é") as error:
            action()
        assert "--on-unknown" not in str(error.value)
    with pytest.raises(UserError, match="on_unknown must be error, skip or replace, not 'drop'"):
        Vocab.ascii().encode("a", on_unknown="drop")


def test_a_text_of_which_nothing_is_left_is_rejected(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("日本")
    with pytest.raises(UserError, match=r"text\.txt has no characters in the ascii vocabulary; use different text"):
        read_pieces(path, Vocab.ascii(), on_unknown="skip")
    assert encode_context(Vocab.ascii(), "日本", "skip").tolist() == [10]  # as for an empty context
    assert read_pieces(path, Vocab.bytes(), on_unknown="skip").size == 6
