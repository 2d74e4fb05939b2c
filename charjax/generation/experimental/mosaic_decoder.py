"""The XLA decoder with a Pallas kernel for Hopper GPUs that samples a character and computes the gates of layer 0.

The kernel has been compiled for an H100 and run in interpret mode on a CPU, but never run on a GPU.
"""

import dataclasses
import functools
from typing import Any

import jax

from charjax.array_types import Array
from charjax.generation.blocks import BLOCK, steps_per_trip
from charjax.generation.sampling import Sampling
from charjax.generation.xla_decoder import XlaDecoder, XlaWeights
from charjax.ops.lstm import single_step
from charjax.ops.lstm.experimental.mosaic_gpu import sample_step
from charjax.ops.lstm.single_step import StepState


@dataclasses.dataclass(frozen=True)
class MosaicDecoder(XlaDecoder):
    """Samples with the kernel unless characters are excluded by top-k, top-p or min-p.

    Attributes:
        interpret: Pallas's parameters for interpreting the kernel on any platform, for tests; None compiles it.
    """

    interpret: Any = None

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("capacity", "filtered"))
    def write(
        self, weights: XlaWeights, state: StepState, sampling: Sampling, length: Array, *, capacity: int, filtered: bool
    ) -> tuple[StepState, Array]:
        """Samples characters block by block, with units and vocabulary padded to sizes that the kernel supports."""
        if filtered:
            return super().write(weights, state, sampling, length, capacity=capacity, filtered=filtered)
        padded, temperature = sample_step.pad_weights(weights.steps), sampling.settings.temperature

        def sample_one(noise_TBV: Array, state: StepState, number: Array) -> tuple[StepState, Array]:
            ids_B, first, operand = sample_step.choose(padded, state, noise_TBV, number, temperature, self.interpret)
            return single_step.step_above(padded, state, first, operand), ids_B

        def sample_block(state: StepState, noise_TBV: Array) -> tuple[StepState, Array]:
            sample_next = functools.partial(sample_one, sample_step.pad_noise(noise_TBV))
            return jax.lax.scan(sample_next, state, sample_step.numbers(BLOCK), unroll=steps_per_trip())

        summands = sample_step.summands(len(sampling.keys))
        state = single_step.start(padded, sample_step.pad_carry(state.carry), summands=summands)
        state, ids = self._write_blocks(sample_block, state, sampling, length, capacity)
        return single_step.start(weights.steps, sample_step.cut_carry(state.carry, self.model.hidden_dim)), ids
