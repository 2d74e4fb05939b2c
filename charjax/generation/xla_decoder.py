"""The decoder that XLA compiles, for every platform."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from charjax.array_types import Array, Params
from charjax.generation.blocks import BLOCK, steps_per_trip
from charjax.generation.sampling import Sampling, gumbel_noise, sample
from charjax.model import CharLSTM, init_carry, layer_weights
from charjax.ops.lstm import single_step
from charjax.ops.lstm.single_step import StepState, StepWeights


class XlaWeights(NamedTuple):
    """The model's parameters, both as they are, for reading a whole context at once, and packed for single steps."""

    params: Params
    steps: StepWeights


@dataclasses.dataclass(frozen=True)
class XlaDecoder:
    """Implements `Decoder` in JAX.

    Beam search and activations, which need the state after every character, use its single steps.

    Attributes:
        model: the model.
        dtype: the operand format of a step, "float32" or "bfloat16".
    """

    model: CharLSTM
    dtype: str

    def pack(self, params: Params) -> XlaWeights:
        """Packs the parameters."""
        # The parameters are not passed through the jitted call, which would copy them.
        return XlaWeights(params, self._pack_steps(params))

    @functools.partial(jax.jit, static_argnums=0)
    def _pack_steps(self, params: Params) -> StepWeights:
        head = params["head"]
        return single_step.pack(layer_weights(self.model, params), head["kernel"], head["bias"], jnp.dtype(self.dtype))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def init(self, batch: int) -> StepState:
        """Returns the zero state."""
        hidden, layers = self.model.hidden_dim, self.model.hidden_layers
        widths = [4 * hidden + above for above in [*[4 * hidden] * (layers - 1), self.model.vocab_size]]
        # h is zero, so its products with the weights are too.
        return StepState(init_carry(self.model, batch), tuple(jnp.zeros((1, batch, width)) for width in widths))

    def pad_context(self, ids: ArrayLike, lengths: ArrayLike | None) -> tuple[ArrayLike, ArrayLike | None]:
        """Returns its arguments unchanged, because reading padding would take time."""
        return ids, lengths

    @functools.partial(jax.jit, static_argnums=0)
    def prefill(self, weights: XlaWeights, state: StepState, ids: Array, lengths: Array | None = None) -> StepState:
        """Reads a context, all at once if the rows have the same length, otherwise step by step."""
        if not ids.shape[1]:
            return state
        if lengths is None:
            _, carry = self.model.apply({"params": weights.params}, ids, state.carry)
            return single_step.start(weights.steps, carry)

        def read(state: StepState, now: tuple[Array, Array]) -> tuple[StepState, None]:
            ids_B, within_B = now
            return single_step.where(within_B, single_step.step(weights.steps, state, ids_B), state), None

        within_BP = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        return jax.lax.scan(read, state, (ids.T, within_BP.T))[0]

    def step(self, weights: XlaWeights, state: StepState, ids: Array) -> StepState:
        """Reads one character per sequence, ids [B] integer."""
        return single_step.step(weights.steps, state, ids)

    def next_logits(self, weights: XlaWeights, state: StepState) -> Array:
        """Returns the logits for the next character, [B, V] float32."""
        return single_step.logits(weights.steps, state)

    def logits(
        self, weights: XlaWeights, state: StepState, ids: Array, resets: Array, reduce: Callable[[Array, Array], Any]
    ) -> tuple[Any, StepState]:
        """Reads ids, applying `reduce` to each step's logits inside the scan, so that they are never all in memory."""

        def read(state: StepState, now: tuple[Array, Array]) -> tuple[StepState, Any]:
            ids_B, resets_B = now
            state = single_step.where(resets_B, jax.tree.map(jnp.zeros_like, state), state)
            result = reduce(self.next_logits(weights, state), ids_B)
            return self.step(weights, state, ids_B), result

        state, results = jax.lax.scan(read, state, (ids.T, resets.T), unroll=steps_per_trip())
        return jax.tree.map(lambda values: jnp.swapaxes(values, 0, 1), results), state

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "filtered"))
    def write(
        self, weights: XlaWeights, state: StepState, sampling: Sampling, length: Array, *, capacity: int, filtered: bool
    ) -> tuple[StepState, Array]:
        """Samples characters block by block."""
        sample_each = jax.vmap(functools.partial(sample, filtered=filtered))

        def sample_one(state: StepState, noise_BV: Array) -> tuple[StepState, Array]:
            ids_B = sample_each(noise_BV, self.next_logits(weights, state), sampling.settings)
            return self.step(weights, state, ids_B), ids_B

        def sample_block(state: StepState, noise_TBV: Array) -> tuple[StepState, Array]:
            return jax.lax.scan(sample_one, state, noise_TBV, unroll=steps_per_trip())

        return self._write_blocks(sample_block, state, sampling, length, capacity)

    def _write_blocks(
        self,
        sample_block: Callable[[StepState, Array], tuple[StepState, Array]],
        state: StepState,
        sampling: Sampling,
        length: Array,
        capacity: int,
    ) -> tuple[StepState, Array]:
        """Samples blocks until there are at least `length` characters -> (state, ids [B, capacity]).

        `sample_block` takes a state and noise [BLOCK, B, V] and returns the next state and ids [BLOCK, B].
        """

        def write_block(number: Array, before: tuple[StepState, Array]) -> tuple[StepState, Array]:
            state, ids_NTB = before
            positions = sampling.position + BLOCK * number + jnp.arange(BLOCK)
            state, ids_TB = sample_block(state, gumbel_noise(sampling.keys, positions, self.model.vocab_size))
            return state, jax.lax.dynamic_update_index_in_dim(ids_NTB, ids_TB, number, 0)

        batch = len(sampling.keys)
        ids_NTB = jnp.zeros((capacity // BLOCK, BLOCK, batch), jnp.int32)
        if capacity:
            state, ids_NTB = jax.lax.fori_loop(0, -(-length // BLOCK), write_block, (state, ids_NTB))
        return state, ids_NTB.reshape(capacity, batch).T
