"""The decoder for CPUs, in C++: runs many steps of all layers, including the sampling, in one custom call."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from charjax.array_types import Array, Params
from charjax.config import SampleConfig
from charjax.generation.blocks import BLOCK, capacity_for
from charjax.generation.sampling import Sampling, make_settings
from charjax.model import Carry, CharLSTM, init_carry, layer_weights
from charjax.ops.lstm.native import generation
from charjax.ops.lstm.native.generation import RESET, SAMPLE, SKIP, PackedWeights
from charjax.ops.lstm.native.libraries import Library


class NativeState(NamedTuple):
    """The recurrent state per layer, [B, H] float32."""

    carry: Carry


@dataclasses.dataclass(frozen=True)
class NativeDecoder:
    """Implements `Decoder` with the compiled kernel; see `charjax.ops.lstm.native.generation`.

    The results for a sequence are bitwise identical whatever the rest of the batch is.

    Attributes:
        model: the model.
        dtype: the weight format, one of `charjax.ops.lstm.native.libraries.STEP_DTYPES`.
        library: the compiled form of the kernel.
    """

    model: CharLSTM
    dtype: str
    library: Library

    @functools.partial(jax.jit, static_argnums=0)
    def pack(self, params: Params) -> PackedWeights:
        """Packs the parameters."""
        head = params["head"]
        return generation.pack(
            layer_weights(self.model, params), head["kernel"], head["bias"], self.dtype, self.library
        )

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def init(self, batch: int) -> NativeState:
        """Returns the zero state."""
        return NativeState(init_carry(self.model, batch))

    def pad_context(self, ids: ArrayLike, lengths: ArrayLike | None) -> tuple[ArrayLike, ArrayLike]:
        """Pads ids [B, P] to a power-of-two number of blocks; the kernel skips padding at no cost."""
        size = np.shape(ids)[1]
        room = ((0, 0), (0, capacity_for(size) - size))
        padded = np.pad(ids, room) if isinstance(ids, np.ndarray) else jnp.pad(jnp.asarray(ids), room)
        return padded, np.int32(size) if lengths is None else lengths

    def prefill(
        self, weights: PackedWeights, state: NativeState, ids: ArrayLike, lengths: ArrayLike | None = None
    ) -> NativeState:
        """Reads a context."""
        return self._prefill(weights, state, *self.pad_context(ids, lengths))

    @functools.partial(jax.jit, static_argnums=0)
    def _prefill(self, weights: PackedWeights, state: NativeState, ids: Array, lengths: Array) -> NativeState:
        ids = ids.astype(jnp.int32)
        within_BP = jnp.arange(ids.shape[1])[None] < jnp.broadcast_to(lengths, ids.shape[0])[:, None]
        # The kernel treats negative ids as instructions (SAMPLE, SKIP, RESET), so they are mapped to V, which is also
        # out of range and gives NaN.
        given = jnp.where(within_BP, jnp.where(ids < 0, self.model.vocab_size, ids), SKIP)
        return self._read(weights, state, given)[1]

    def logits(
        self, weights: PackedWeights, state: NativeState, ids: Array, resets: Array, reduce: Callable[..., Any]
    ) -> tuple[Any, NativeState]:
        """Reads ids, then reduces their logits."""
        logits_BTV, state = self._read(weights, state, jnp.where(resets, RESET - ids, ids), with_logits=True)
        # One step at a time, because the summation order over V would depend on T if all steps were reduced at once.
        results = jax.lax.map(lambda now: reduce(*now), (jnp.swapaxes(logits_BTV, 0, 1), ids.T))
        return jax.tree.map(lambda values: jnp.swapaxes(values, 0, 1), results), state

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "filtered"))
    def write(
        self,
        weights: PackedWeights,
        state: NativeState,
        sampling: Sampling,
        length: Array,
        *,
        capacity: int,
        filtered: bool,
    ) -> tuple[NativeState, Array]:
        """Samples characters in one call; the kernel itself checks whether any are excluded."""
        del filtered
        given = jnp.where(jnp.arange(capacity) < -(-length // BLOCK) * BLOCK, SAMPLE, SKIP)
        given = jnp.broadcast_to(given[None], (len(sampling.keys), capacity))
        ids, carry, _ = self._run_steps(weights, state.carry, given, *sampling)
        return NativeState(carry), ids

    def _read(
        self, weights: PackedWeights, state: NativeState, given: Array, *, with_logits: bool = False
    ) -> tuple[Array, NativeState]:
        """Takes steps without sampling -> (logits if requested, state)."""
        batch = len(given)
        keys = jnp.broadcast_to(jax.random.key(0, impl="threefry2x32"), batch)
        sampling = Sampling(keys, jnp.zeros((), jnp.int32), make_settings(SampleConfig(), batch))
        _, carry, logits = self._run_steps(weights, state.carry, given, *sampling, with_logits=with_logits)
        return logits, NativeState(carry)

    @property
    def _run_steps(self) -> Callable[..., tuple[Array, Carry, Array]]:
        return functools.partial(generation.run_steps, self.library, self.dtype, vocab_size=self.model.vocab_size)
