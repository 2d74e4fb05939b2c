"""One text that grows piece by piece: shown as it comes, ended by a stop string, gone on with in turns."""

import codecs
import time
from collections.abc import Iterator

import numpy as np

from charjax.array_types import Params
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab, encode_context, encode_stop
from charjax.distributed.mesh import on_one_device
from charjax.generation.decode import BLOCK, arrange, decode, init_state, read
from charjax.generation.generate import end_of, keys_of_seeds
from charjax.generation.sampling import is_filtered, make_choice
from charjax.model import CharLSTM

# The first piece is short, to show something; later ones are longer as long as they take no time that anyone sees.
_LARGEST_PIECE, _SECONDS = 256, 0.03


class Session:
    """A text of which some parts are given and others drawn; the recurrent state goes on from one to the next."""

    def __init__(
        self, model: CharLSTM, params: Params, vocab: Vocab, config: SampleConfig, *, stop: str | None = None
    ) -> None:
        """Starts before the first character.

        Args:
            model: the model.
            params: its parameters.
            vocab: its characters.
            config: temperature, top_k, top_p, min_p, seed and weights.
            stop: ends what is written right after its first occurrence.

        Raises:
            UserError: an empty stop, or characters in it that the vocabulary lacks.
            NotImplementedError: int8 weights where they cannot be had.
        """
        self._model, self._params, self._vocab = model, on_one_device(params), vocab
        self._weights = arrange(model, self._params, config.weights)
        self._choice, self._filtered = make_choice(config, 1), is_filtered(config)
        self._stop = None if stop is None else encode_stop(vocab, stop)
        self._reach = len(self._stop) if self._stop is not None else 1
        self._state = init_state(model, keys_of_seeds(config.seed, 1))
        self._piece = BLOCK

    def read(self, ids: np.ndarray) -> None:
        """Goes on with characters [P] that are given."""
        self._state = read(self._model, self._params, self._weights, self._state, ids[None])

    def write_ids(self, length: int | None = None) -> Iterator[np.ndarray]:
        """Draws `length` characters, or without end, up to the stop string; yields ids [n] as they come.

        At each piece the state is that after the piece's last character, wherever the caller stops.
        """
        written, tail = 0, np.zeros(0, np.int32)
        while length is None or written < length:
            count = self._piece if length is None else min(self._piece, length - written)
            ids, ended = self._draw(count, tail)
            tail = np.concatenate([tail, ids])[-self._reach :]
            written += len(ids)
            yield ids
            if ended:
                return

    def write(self, length: int | None = None) -> Iterator[str]:
        """Draws characters as `write_ids` does; yields text."""
        # A character of several bytes may be cut by the end of a piece: the decoder holds its beginning back.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for ids in self.write_ids(length):
            in_bytes = self._vocab.kind == "bytes"
            yield decoder.decode(ids.astype(np.uint8).tobytes()) if in_bytes else self._vocab.decode(ids)
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _draw(self, count: int, tail: np.ndarray) -> tuple[np.ndarray, bool]:
        """The next characters, at most `count`, and whether they end with the stop string."""
        before, began = self._state, time.perf_counter()
        after, drawn = decode(
            self._model,
            self._weights,
            before,
            self._choice,
            np.int32(count),
            capacity=_LARGEST_PIECE,
            filtered=self._filtered,
        )
        ids = np.asarray(drawn)[0, :count]
        if 2 * self._piece <= _LARGEST_PIECE and time.perf_counter() - began < _SECONDS:
            self._piece *= 2
        end = None if self._stop is None else _end_after(self._stop, tail, ids)
        ids = ids[:end]
        if len(ids) % BLOCK == 0 and end is None:
            self._state = after
        else:
            # It was drawn in whole blocks: what is kept is read from where they began.
            self._state = before
            self.read(ids)
            self._state = self._state._replace(position=np.int32(int(before.position) + len(ids)))
        return ids, end is not None


def stream_text(
    model: CharLSTM, params: Params, vocab: Vocab, context: str, config: SampleConfig, *, stop: str | None = None
) -> Iterator[str]:
    """Yields one continuation piece by piece: joined, they are what `generate_text` returns first.

    Args:
        model: the model.
        params: its parameters.
        vocab: its characters.
        context: what to go on from.
        config: length, temperature, top_k, top_p, min_p, seed and weights.
        stop: ends the text right after its first occurrence.

    Raises:
        UserError: characters of the context or of `stop` that the vocabulary lacks.
        NotImplementedError: int8 weights where they cannot be had.
    """
    session = Session(model, params, vocab, config, stop=stop)
    session.read(encode_context(vocab, context))
    yield from session.write(config.length)


def _end_after(stop: np.ndarray, before: np.ndarray, ids: np.ndarray) -> int | None:
    """How many of `ids` there are up to the end of the first `stop`, which may begin among those before."""
    before = before[len(before) - min(len(before), len(stop) - 1) :]
    end = end_of(stop, np.concatenate([before, ids]))
    return None if end is None else end - len(before)
