"""A text's characters, and which of a model's predictions or states belongs to each."""

import codecs
from collections.abc import Iterator

import numpy as np

from charjax.data.vocab import Vocab


class CharacterDecoder:
    """Turns ids that come in pieces into characters, each of one id, or with bytes of several.

    Bytes that are no UTF-8 come as `errors="surrogateescape"` decodes them.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._codes = vocab.codes()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape") if vocab.kind == "bytes" else None

    def decode(self, ids: np.ndarray, *, final: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Goes on with ids [n]: -> (code points [m] uint32, how many ids each is made of, [m] int64).

        A character whose bytes have not all come waits for the next call, unless this one is final.
        """
        if self._utf8 is None:
            return self._codes[ids], np.ones(len(ids), np.int64)
        text = self._utf8.decode(ids.astype(np.uint8).tobytes(), final)
        points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
        return points, utf8_sizes(points)


def utf8_sizes(points: np.ndarray) -> np.ndarray:
    """How many bytes code points [n] take, [n] int64; UTF-8 has no surrogates, and one stands for a stray byte."""
    sizes = np.searchsorted([0x80, 0x800, 0x10000], points, side="right") + 1
    return np.where((points >= 0xD800) & (points < 0xE000), 1, sizes)


def pieces(vocab: Vocab, ids: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yields each character of ids [N] and the place of its last id, which with bytes is one of several."""
    points, sizes = CharacterDecoder(vocab).decode(np.asarray(ids), final=True)
    yield from zip(map(chr, points.tolist()), (np.cumsum(sizes) - 1).tolist(), strict=True)
