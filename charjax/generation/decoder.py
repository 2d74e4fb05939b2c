"""The decoder, which reads a context and generates what follows step by step, carrying over the recurrent state."""

from collections.abc import Callable
from typing import Any, Protocol

from jax.typing import ArrayLike

from charjax.array_types import Array, Params
from charjax.generation.native_decoder import NativeDecoder
from charjax.generation.sampling import Sampling
from charjax.generation.xla_decoder import XlaDecoder
from charjax.model import CharLSTM
from charjax.ops.lstm.native.generation import library_for_generation
from charjax.ops.lstm.target import target_is_hopper, target_platform

# Pytrees whose structure depends on the decoder. Every state has a `carry`, the recurrent state per layer, [B, H]
# float32.
Weights = Any
State = Any


class Decoder(Protocol):
    """Runs a model character by character.

    A decoder holds no arrays and is hashable, so it can be a static argument of a jitted function. All decoders take
    the same parameters and sample with the same noise.
    """

    @property
    def model(self) -> CharLSTM:
        """The model."""

    def pack(self, params: Params) -> Weights:
        """Packs the model's parameters once, for any number of calls to the other methods."""

    def init(self, batch: int) -> State:
        """Returns the initial state for B sequences."""

    def pad_context(self, ids: ArrayLike, lengths: ArrayLike | None) -> tuple[ArrayLike, ArrayLike | None]:
        """Pads the arguments of `prefill` if that avoids recompilation and reading the padding takes no time."""

    def prefill(self, weights: Weights, state: State, ids: ArrayLike, lengths: ArrayLike | None = None) -> State:
        """Reads a context.

        Args:
            weights: from `pack`.
            state: the state before the context.
            ids: [B, P] integer.
            lengths: [B] integer, how many ids of each row to read; all by default.
        """

    def logits(
        self, weights: Weights, state: State, ids: Array, resets: Array, reduce: Callable[[Array, Array], Any]
    ) -> tuple[Any, State]:
        """Reads ids and maps `reduce` over the logits, computed for each character before it is read.

        The arithmetic of a step does not depend on the number of steps.

        Args:
            weights: from `pack`.
            state: the state before the first id.
            ids: [B, T] int32 in [0, V).
            resets: [B, T] bool, which characters are read from a zero state.
            reduce: maps logits [B, V] float32 and ids [B] to a pytree of [B, ...].

        Returns:
            The results, [B, T, ...], and the state after the last id.
        """

    def write(
        self, weights: Weights, state: State, sampling: Sampling, length: ArrayLike, *, capacity: int, filtered: bool
    ) -> tuple[State, Array]:
        """Samples `length` characters of each sequence.

        Args:
            weights: from `pack`.
            state: the state before the first of these characters.
            sampling: the keys and settings to sample with.
            length: [] integer, at most `capacity`; rounded up to whole blocks. A new length does not trigger
                recompilation.
            capacity: a multiple of BLOCK.
            filtered: whether top-k, top-p or min-p exclude characters.

        Returns:
            The state after the last block, and ids [B, capacity] int32, of which the first `length` are valid.
        """


def make_decoder(model: CharLSTM, weights: str = "auto") -> Decoder:
    """Returns a decoder for the model: the native one on CPUs if the model's implementation allows it, otherwise XLA's.

    Args:
        model: the model.
        weights: the weight format: "float32", "bfloat16", "int8", or "auto" for the model's dtype.

    Raises:
        NotImplementedError: the weights are int8, but the native kernel is not available.
    """
    dtype = model.dtype if weights == "auto" else weights
    native = target_platform() == "cpu" and model.implementation in (None, "native")
    if native and (library := library_for_generation()):
        return NativeDecoder(model, dtype, library)
    if dtype == "int8":
        raise NotImplementedError("int8 weights require the native kernel on a CPU; use bfloat16 or float32 instead")
    if model.implementation == "mosaic_gpu" and target_is_hopper():
        # Imported only when needed, because importing Pallas takes a sixth of a second.
        from charjax.generation.experimental.mosaic_decoder import MosaicDecoder  # noqa: PLC0415

        return MosaicDecoder(model, dtype)
    return XlaDecoder(model, dtype)
