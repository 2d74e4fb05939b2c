"""Whether a training or a sampling fits in memory: told before anything is written or put on a device.

A system that runs out of memory does not say so: it swaps for hours, or kills the process in the middle of a save.
"""

from collections.abc import Sequence

import jax

from charjax.config import ModelConfig, TrainConfig
from charjax.errors import UserError
from charjax.host.memory import available_memory

_FLOAT32 = 4
# Parameters, Adam's two moments, gradients.
_COPIES_OF_PARAMETERS = 4
# What a layer keeps of each character and unit for the backward pass: four gates, the cell state, the output.
_SAVED_PER_UNIT = 6


def count_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Number of a model's parameters, without building it."""
    hidden, gates = model.hidden_dim, 4 * model.hidden_dim
    layers = (vocab_size + hidden + 1) * gates + (model.hidden_layers - 1) * (2 * hidden + 1) * gates
    return layers + (hidden + 1) * vocab_size


def check_room_to_train(model: ModelConfig, train: TrainConfig, vocab_size: int, devices: Sequence[jax.Device]) -> None:
    """Checks that a training run fits in the memory there is; where the system does not tell, it passes.

    Args:
        model: the model's shape.
        train: batch_size, seq_len and microbatches count.
        vocab_size: V.
        devices: those that training uses. Each holds a copy of the parameters and their moments, and its share of the
            batch; processor cores hold theirs in the same memory.

    Raises:
        UserError: it does not fit; the message says what is needed, what there is and what to lower.
    """
    width = 2 if model.dtype == "bfloat16" else _FLOAT32
    characters = train.batch_size * train.seq_len // train.microbatches
    state = _COPIES_OF_PARAMETERS * _FLOAT32 * count_parameters(model, vocab_size)
    kept = characters * (_SAVED_PER_UNIT * model.hidden_dim * model.hidden_layers * width + vocab_size * _FLOAT32)
    shared = devices[0].platform == "cpu"
    # Other processes have memory of their own, as far as can be known here.
    local = [device for device in devices if device.process_index == jax.process_index()]
    each = kept // len(devices)
    states, share = (len(local) * state, len(local) * each) if shared else (state, each)
    available = available_memory(devices)
    if available is None or states + share <= available:
        return
    if states > available:
        advice = f"lower --hidden-dim (it is {model.hidden_dim}) or --hidden-layers ({model.hidden_layers})"
    else:
        advice = (
            f"lower --batch-size (it is {train.batch_size}) or --seq-len ({train.seq_len}), "
            f"or raise --microbatches ({train.microbatches})"
        )
    if shared and len(local) > 1 and state + len(local) * each <= available:
        advice += f", or set JAX_NUM_CPU_DEVICES=1 for one copy of the model in place of {len(local)}"
    raise UserError(
        f"training needs about {_size(states + share)} of memory, {_size(available)} is available: {advice}"
    )


def check_room_to_load(model: ModelConfig, vocab_size: int) -> None:
    """Checks that a model's parameters fit in the memory there is; where the system does not tell, it passes.

    Raises:
        UserError: they do not.
    """
    needed, available = _FLOAT32 * count_parameters(model, vocab_size), available_memory(jax.devices()[:1])
    if available is not None and needed > available:
        raise UserError(f"the model needs about {_size(needed)} of memory, {_size(available)} is available")


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
    """Checks that texts generated side by side fit in the memory there is; where the system does not tell, it passes.

    Args:
        model: the model's shape.
        vocab_size: V.
        num_samples: texts.
        length: characters of each.
        context_length: characters that each goes on from.
        block: characters whose noise is drawn at once.
        flags: what the message says to lower.

    Raises:
        UserError: they do not fit; the message says what is needed, what there is and what to lower.
    """
    # The state before and after a character and what its products give; the logits of the context; the noise of a block
    # of characters and the random bits that it is made of; ids there and back.
    each = model.hidden_layers * 20 * model.hidden_dim + (context_length + 4 * block) * vocab_size + 2 * length
    needed = num_samples * each * _FLOAT32
    available = available_memory(jax.devices()[:1])
    if available is not None and needed > available:
        raise UserError(
            f"{num_samples} x {length} characters to generate need about {_size(needed)} of memory, "
            f"{_size(available)} is available: lower {flags}"
        )


def _size(size: int) -> str:
    """Bytes in words: 512 MB, 1.5 GB, 24 GB, 160,000 TB."""
    amount = float(min(size, 10**300))  # a file from someone else may ask for more than a float holds
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
