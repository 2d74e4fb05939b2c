"""Decodes ids to characters and counts the ids in each character."""

import codecs
from collections.abc import Iterator

import numpy as np

from charjax.data.vocab import Vocab


class CharacterDecoder:
    """Decodes ids that arrive in chunks; a character is one id, or up to four with the "bytes" vocabulary.

    Invalid UTF-8 is decoded as with `errors="surrogateescape"`.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._codes = vocab.codes()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape") if vocab.kind == "bytes" else None

    def decode(self, ids: np.ndarray, *, final: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the next ids [n] to (code points [m] uint32, number of ids in each [m] int64).

        An incomplete character is held back until the next call, unless this one is final.
        """
        if self._utf8 is None:
            return self._codes[ids], np.ones(len(ids), np.int64)
        text = self._utf8.decode(ids.astype(np.uint8).tobytes(), final)
        points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
        return points, utf8_sizes(points)


def utf8_sizes(points: np.ndarray) -> np.ndarray:
    """Returns the UTF-8 length in bytes, [n] int64, of each code point [n]; a surrogate stands for one stray byte."""
    sizes = np.ones(len(points), np.uint8)  # several times faster than np.searchsorted
    for least in (0x80, 0x800, 0x10000):
        sizes += points >= least
    sizes[(points >= 0xD800) & (points < 0xE000)] = 1
    return sizes.astype(np.int64)


def decode_characters(vocab: Vocab, ids: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yields each character in ids [N] with the position of its last id."""
    points, sizes = CharacterDecoder(vocab).decode(np.asarray(ids), final=True)
    yield from zip(map(chr, points.tolist()), (np.cumsum(sizes) - 1).tolist(), strict=True)
