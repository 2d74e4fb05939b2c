"""Every character is decoded once, with the position of its last id."""

import numpy as np
import pytest

from charjax.data.character_decoder import decode_characters
from charjax.data.vocab import Vocab


@pytest.mark.parametrize("vocab", [Vocab.ascii(), Vocab.from_text("a\n<é日"), Vocab.bytes()])
def test_characters_and_their_positions(vocab):
    assert list(decode_characters(vocab, vocab.encode("a\na"))) == [("a", 0), ("\n", 1), ("a", 2)]


def test_a_character_of_several_bytes_has_the_position_of_its_last_byte():
    vocab = Vocab.bytes()
    assert list(decode_characters(vocab, vocab.encode("aé日b"))) == [("a", 0), ("é", 2), ("日", 5), ("b", 6)]


def test_bytes_that_are_not_utf8_keep_their_positions():
    content = b"\xa9a\xc3\xc3\xa9\xe6\x97b\xe6"
    found = list(decode_characters(Vocab.bytes(), np.frombuffer(content, np.uint8)))
    assert "".join(character for character, _ in found) == content.decode("utf-8", errors="surrogateescape")
    assert [position for _, position in found] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_no_characters():
    for vocab in (Vocab.ascii(), Vocab.bytes()):
        assert list(decode_characters(vocab, np.zeros(0, np.uint8))) == []
