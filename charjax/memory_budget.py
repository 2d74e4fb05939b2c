"""Checks that training, loading or sampling fits in memory before anything is written or put on a device.

A system that runs out of memory does not raise an error; it swaps for hours or kills the process in the middle of a
save.
"""

from collections.abc import Sequence

import humanize
import jax

from charjax.config import ModelConfig, TrainConfig
from charjax.devices import all_devices
from charjax.errors import UserError
from charjax.host.memory import available_memory

_FLOAT32 = 4
# Parameters, two Adam moments and gradients.
_COPIES_OF_PARAMETERS = 4
# Per model in a sweep: parameters and moments before and after a call, the best parameters, and gradients.
_COPIES_IN_SWEEP = 8
# Values that a layer saves per character and hidden unit for the backward pass: four gates, the cell state and the
# output.
_SAVED_PER_UNIT = 6


def count_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Returns the number of parameters in a model without building it."""
    hidden, gates = model.hidden_dim, 4 * model.hidden_dim
    layers = (vocab_size + hidden + 1) * gates + (model.hidden_layers - 1) * (2 * hidden + 1) * gates
    return layers + (hidden + 1) * vocab_size


def memory_to_train(model: ModelConfig, train: TrainConfig, vocab_size: int, devices: Sequence[jax.Device]) -> int:
    """Returns the number of bytes that a training run needs on this host's CPU or on each accelerator.

    The arguments are those of `check_room_to_train`.
    """
    return sum(_parts_to_train(model, train, vocab_size, devices))


def _parts_to_train(
    model: ModelConfig, train: TrainConfig, vocab_size: int, devices: Sequence[jax.Device]
) -> tuple[int, int]:
    """Returns the bytes needed for parameters and optimizer moments, and for the backward pass."""
    state = _COPIES_OF_PARAMETERS * _FLOAT32 * count_parameters(model, vocab_size)
    each = _kept_for_backward(model, train, vocab_size) // len(devices)
    # Other processes are assumed not to share this memory.
    local = sum(device.process_index == jax.process_index() for device in devices)
    return (local * state, local * each) if devices[0].platform == "cpu" else (state, each)


def check_room_to_train(model: ModelConfig, train: TrainConfig, vocab_size: int, devices: Sequence[jax.Device]) -> None:
    """Checks that a training run fits in the available memory; does nothing if that is unknown.

    Args:
        model: size of the model.
        train: training configuration; only batch_size, seq_len and microbatches matter.
        vocab_size: V.
        devices: devices of the run. Each holds a copy of the parameters and optimizer moments, and its share of the
            batch; devices that are CPU cores share the host's memory.

    Raises:
        UserError: the run does not fit; the message says what to reduce.
    """
    states, share = _parts_to_train(model, train, vocab_size, devices)
    available = available_memory(devices)
    if available is None or states + share <= available:
        return
    if states > available:
        advice = (
            f"reduce --hidden-dim (currently {model.hidden_dim}) or --hidden-layers (currently {model.hidden_layers})"
        )
    else:
        advice = (
            f"reduce --batch-size (currently {train.batch_size}) or --seq-len (currently {train.seq_len}), "
            f"or increase --microbatches (currently {train.microbatches})"
        )
    copies = sum(device.process_index == jax.process_index() for device in devices)
    if devices[0].platform == "cpu" and copies > 1 and states // copies + share <= available:
        advice += f", or set JAX_NUM_CPU_DEVICES=1 for one copy of the model instead of {copies}"
    raise UserError(
        f"training needs about {_size(states + share)} of memory, but only {_size(available)} is available; {advice}"
    )


def check_room_to_sweep(
    model: ModelConfig,
    train: TrainConfig,
    vocab_size: int,
    devices: Sequence[jax.Device],
    *,
    members: int,
    at_once: int,
) -> None:
    """Checks that a sweep's models fit in the available memory; does nothing if that is unknown.

    Args:
        model: size of each model.
        train: as for `check_room_to_train`.
        vocab_size: V.
        devices: devices of the sweep; those that are CPU cores share the host's memory.
        members: number of models.
        at_once: number of models that a device trains at the same time.

    Raises:
        UserError: the models do not fit.
    """
    shared = devices[0].platform == "cpu"
    used = min(members, len(devices))
    states = _COPIES_IN_SWEEP * _FLOAT32 * count_parameters(model, vocab_size)
    states *= members if shared else -(-members // used)
    kept = _kept_for_backward(model, train, vocab_size) * at_once * (used if shared else 1)
    needed, available = states + kept, available_memory(devices)
    if available is not None and needed > available:
        raise UserError(
            f"training {members:,} models at once needs about {_size(needed)} of memory, but only {_size(available)} "
            f"is available; reduce the number of values, --seeds, --hidden-dim (currently {model.hidden_dim}) or "
            f"--batch-size (currently {train.batch_size})"
        )


def _kept_for_backward(model: ModelConfig, train: TrainConfig, vocab_size: int) -> int:
    """Returns the number of bytes saved for the backward pass of a batch."""
    width = 2 if model.dtype == "bfloat16" else _FLOAT32
    characters = train.batch_size * train.seq_len // train.microbatches
    return characters * (_SAVED_PER_UNIT * model.hidden_dim * model.hidden_layers * width + vocab_size * _FLOAT32)


def check_room_to_load(model: ModelConfig, vocab_size: int) -> None:
    """Checks that a model's parameters fit in the available memory; does nothing if that is unknown.

    Raises:
        UserError: the parameters do not fit.
    """
    needed, available = _FLOAT32 * count_parameters(model, vocab_size), available_memory(all_devices()[:1])
    if available is not None and needed > available:
        raise UserError(f"the model needs about {_size(needed)} of memory, but only {_size(available)} is available")


def check_room_to_sample(
    model: ModelConfig,
    vocab_size: int,
    *,
    num_samples: int,
    length: int,
    context_length: int,
    block: int,
    flags: str = "--num-samples or --length",
) -> None:
    """Checks that generating text fits in the available memory; does nothing if that is unknown.

    Args:
        model: size of the model.
        vocab_size: V.
        num_samples: number of samples, generated at the same time.
        length: characters generated per sample.
        context_length: characters of context per sample.
        block: number of characters whose noise is sampled at once.
        flags: options that the message suggests reducing.

    Raises:
        UserError: the samples do not fit; the message says what to reduce.
    """
    # The states and matrix products of one step; the logits of the context; the noise for a block of characters and the
    # random bits it is made from; the ids on the device and on the host.
    each = model.hidden_layers * 20 * model.hidden_dim + (context_length + 4 * block) * vocab_size + 2 * length
    needed = num_samples * each * _FLOAT32
    available = available_memory(all_devices()[:1])
    if available is not None and needed > available:
        raise UserError(
            f"generating {num_samples} x {length} characters needs about {_size(needed)} of memory, but "
            f"only {_size(available)} is available; reduce {flags}"
        )


def _size(size: int) -> str:
    return humanize.naturalsize(size, format="%.3g")
