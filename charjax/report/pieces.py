"""A text's characters, and which of a model's predictions or states belongs to each."""

import codecs
from collections.abc import Iterator

import numpy as np

from charjax.vocab import Vocab


def pieces(vocab: Vocab, ids: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yields each character of ids [N] and the place of its last id, which with bytes is one of several.

    Bytes that are no UTF-8 come as `errors="surrogateescape"` decodes them.
    """
    if vocab.kind != "bytes":
        yield from ((character, place) for place, character in enumerate(vocab.decode(ids)))
        return
    decoder, end = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape"), 0
    for place in range(len(ids) + 1):
        text = decoder.decode(ids[place : place + 1].astype(np.uint8).tobytes(), final=place == len(ids))
        for character in text:
            end += len(character.encode("utf-8", errors="surrogateescape"))
            yield character, end - 1
