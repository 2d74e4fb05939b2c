"""The decoder: reads a context and writes what follows, one step after another, carrying the recurrent state."""

from collections.abc import Callable
from typing import Any, Protocol

from jax.typing import ArrayLike

from charjax.array_types import Array, Params
from charjax.generation.native_decoder import NativeDecoder
from charjax.generation.sampling import Sampling
from charjax.generation.xla_decoder import XlaDecoder
from charjax.model import CharLSTM
from charjax.ops.lstm.native.steps import library_for_steps
from charjax.ops.lstm.target import target_is_hopper, target_platform

# Pytrees whose structure depends on the decoder. A state has `carry`, the recurrent state per layer, [B, H] float32.
Weights = Any
State = Any


class Decoder(Protocol):
    """Steps through characters with a model.

    A decoder holds no arrays and is hashable, so it can be a static argument of a jitted function. All decoders read
    the same parameters and sample with the same noise.
    """

    @property
    def model(self) -> CharLSTM:
        """The model."""

    def pack(self, params: Params) -> Weights:
        """Packs a model's parameters once, for any number of calls of the other methods."""

    def init(self, batch: int) -> State:
        """Returns the state of B sequences before their first character."""

    def pad_context(self, ids: ArrayLike, lengths: ArrayLike | None) -> tuple[ArrayLike, ArrayLike | None]:
        """Pads the arguments of `prefill`, if that saves recompilation and the padding costs no time to read."""

    def prefill(self, weights: Weights, state: State, ids: ArrayLike, lengths: ArrayLike | None = None) -> State:
        """Reads a context.

        Args:
            weights: from `pack`.
            state: the state before the context.
            ids: [B, P] integer.
            lengths: [B] integer, how many ids of each row to read; by default all.
        """

    def logits(
        self, weights: Weights, state: State, ids: Array, resets: Array, reduce: Callable[[Array, Array], Any]
    ) -> tuple[Any, State]:
        """Reads a text and maps `reduce` over the logits of its characters, each predicted before it is read.

        No step's arithmetic depends on how many steps there are.

        Args:
            weights: from `pack`.
            state: the state before the text.
            ids: [B, T] int32 in [0, V).
            resets: [B, T] bool, the characters that are read from a zero state.
            reduce: takes logits [B, V] float32 and ids [B], returns a pytree of [B, ...].

        Returns:
            The results, [B, T, ...], and the state after the text.
        """

    def write(
        self, weights: Weights, state: State, sampling: Sampling, length: ArrayLike, *, capacity: int, filtered: bool
    ) -> tuple[State, Array]:
        """Samples `length` characters of each sequence.

        Args:
            weights: from `pack`.
            state: the state before the first of them.
            sampling: how to sample.
            length: [] integer, at most `capacity`, rounded up to whole blocks; a different length does not trigger
                recompilation.
            capacity: a multiple of BLOCK.
            filtered: whether top-k, top-p or min-p exclude characters.

        Returns:
            The state after the whole blocks, and ids [B, capacity] int32, of which the first `length` are sampled.
        """


def make_decoder(model: CharLSTM, weights: str = "auto") -> Decoder:
    """Returns a decoder for the model: native on CPUs if the model's implementation allows it, otherwise XLA.

    Args:
        model: the model.
        weights: format of the weights: "float32", "bfloat16", "int8", or "auto" for the model's own.

    Raises:
        NotImplementedError: the weights are int8, but there is no native kernel.
    """
    dtype = model.dtype if weights == "auto" else weights
    native = target_platform() == "cpu" and model.implementation in (None, "native")
    if native and (library := library_for_steps()):
        return NativeDecoder(model, dtype, library)
    if dtype == "int8":
        raise NotImplementedError("int8 weights need the native kernel on a CPU; use bfloat16 or float32 here")
    if model.implementation == "mosaic_gpu" and target_is_hopper():
        # Imported only if asked for: Pallas takes a sixth of a second to import.
        from charjax.generation.experimental.mosaic_decoder import MosaicDecoder  # noqa: PLC0415

        return MosaicDecoder(model, dtype)
    return XlaDecoder(model, dtype)
