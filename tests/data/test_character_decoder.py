"""Every character comes once, with the place of its last id."""

import numpy as np
import pytest

from charjax.data.character_decoder import pieces
from charjax.data.vocab import Vocab


@pytest.mark.parametrize("vocab", [Vocab.ascii(), Vocab.from_text("a\n<é日"), Vocab.bytes()])
def test_characters_and_their_places(vocab):
    assert list(pieces(vocab, vocab.encode("a\na"))) == [("a", 0), ("\n", 1), ("a", 2)]


def test_characters_of_several_bytes_take_the_place_of_the_last():
    vocab = Vocab.bytes()
    assert list(pieces(vocab, vocab.encode("aé日b"))) == [("a", 0), ("é", 2), ("日", 5), ("b", 6)]


def test_bytes_that_are_no_characters_keep_their_places():
    content = b"\xa9a\xc3\xc3\xa9\xe6\x97b\xe6"
    found = list(pieces(Vocab.bytes(), np.frombuffer(content, np.uint8)))
    assert "".join(character for character, _ in found) == content.decode("utf-8", errors="surrogateescape")
    assert [place for _, place in found] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_no_characters():
    for vocab in (Vocab.ascii(), Vocab.bytes()):
        assert list(pieces(vocab, np.zeros(0, np.uint8))) == []
