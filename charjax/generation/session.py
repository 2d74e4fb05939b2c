"""Incremental text generation: streaming, stop strings and turn-by-turn continuation."""

import codecs
import functools
import time
from collections.abc import Iterator

import numpy as np

from charjax.array_types import Params
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab, encode_stop
from charjax.distributed.mesh import on_one_device
from charjax.errors import check_type, checked_whole
from charjax.generation.blocks import BLOCK
from charjax.generation.decoder import make_decoder
from charjax.generation.generate import end_of, keys_of_seeds
from charjax.generation.inputs import check_vocab, checked_ids, checked_params
from charjax.generation.sampling import Sampling, as_threefry, is_filtered, make_settings
from charjax.host.jax_modes import in_default_modes
from charjax.model import CharLSTM

# The first piece is short so that some text appears immediately; later pieces grow as long as sampling one takes no
# noticeable time.
_LARGEST_PIECE, _SECONDS = 256, 0.03


class Session:
    """Text made up of given and sampled parts, with one recurrent state throughout."""

    @in_default_modes
    def __init__(
        self, model: CharLSTM, params: Params, vocab: Vocab, config: SampleConfig, *, stop: str | None = None
    ) -> None:
        """Starts a session with no text.

        Args:
            model: the model.
            params: its parameters.
            vocab: its vocabulary.
            config: temperature, top_k, top_p, min_p, seed and weights.
            stop: sampling ends right after the first occurrence of this string.

        Raises:
            UserError: stop is empty or contains characters not in the vocabulary, or the vocabulary or params do not
                match the model.
            NotImplementedError: the weights are int8, but the native kernel is not available.
        """
        check_vocab(model, vocab)
        check_type("config", config, SampleConfig, "e.g. SampleConfig(temperature=0.7)")
        self._decoder, self._vocab = make_decoder(model, config.weights), vocab
        self._weights = self._decoder.pack(on_one_device(checked_params(model, params)))
        keys = as_threefry(keys_of_seeds(config.seed, 1))
        self._sampling, self._filtered = Sampling(keys, np.int32(0), make_settings(config, 1)), is_filtered(config)
        self._stop = None if stop is None else encode_stop(vocab, stop)
        self._reach = len(self._stop) if self._stop is not None else 1
        self._state, self._piece = self._decoder.init(1), BLOCK

    @in_default_modes
    def read(self, ids: np.ndarray) -> None:
        """Reads the given ids [P], appending them to the text.

        Raises:
            UserError: ids are not in [0, V).
        """
        ids = checked_ids(ids, self._decoder.model.vocab_size, "[P]")
        self._state = self._decoder.prefill(self._weights, self._state, ids[None])

    @in_default_modes
    def write_ids(self, length: int | None = None) -> Iterator[np.ndarray]:
        """Samples characters up to the stop string, at most `length` if given, and yields ids [n] as they are sampled.

        After each piece, the state is the one after its last character, so the caller may stop iterating at any point.
        """
        if length is not None:
            length = checked_whole("length", length, least=0)
        written, tail = 0, np.zeros(0, np.int32)
        while length is None or written < length:
            count = self._piece if length is None else min(self._piece, length - written)
            ids, ended = self._sample(count, tail)
            tail = np.concatenate([tail, ids])[-self._reach :]
            written += len(ids)
            yield ids
            if ended:
                return

    @in_default_modes
    def write(self, length: int | None = None) -> Iterator[str]:
        """Samples characters like `write_ids`, but yields text."""
        # A piece may end in the middle of a multi-byte character; the decoder holds back the incomplete bytes.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for ids in self.write_ids(length):
            in_bytes = self._vocab.kind == "bytes"
            yield decoder.decode(ids.astype(np.uint8).tobytes()) if in_bytes else self._vocab.decode(ids)
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _sample(self, count: int, tail: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns the next characters, at most `count`, and whether they end with the stop string."""
        before, began = self._state, time.perf_counter()
        write = functools.partial(self._decoder.write, capacity=_LARGEST_PIECE, filtered=self._filtered)
        after, sampled = write(self._weights, before, self._sampling, np.int32(count))
        ids = np.asarray(sampled)[0, :count]
        if 2 * self._piece <= _LARGEST_PIECE and time.perf_counter() - began < _SECONDS:
            self._piece *= 2
        end = None if self._stop is None else _end_after(self._stop, tail, ids)
        ids = ids[:end]
        if len(ids) % BLOCK == 0 and end is None:
            self._state = after
        else:
            # The decoder samples whole blocks, so go back to the state before them and read the characters to keep.
            self._state = before
            self.read(ids)
        self._sampling = self._sampling._replace(position=self._sampling.position + np.int32(len(ids)))
        return ids, end is not None


def _end_after(stop: np.ndarray, before: np.ndarray, ids: np.ndarray) -> int | None:
    """Returns the index in `ids` just past the first `stop`, which may start in `before`; None if it does not occur."""
    before = before[len(before) - min(len(before), len(stop) - 1) :]
    end = end_of(stop, np.concatenate([before, ids]))
    return None if end is None else end - len(before)
