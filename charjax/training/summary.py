"""Summarizes in a few lines what a training run is about to do."""

from collections import Counter
from collections.abc import Sequence

import humanize
import jax

from charjax.config import TrainConfig
from charjax.data.corpus import Corpus
from charjax.memory_budget import count_parameters, memory_to_train
from charjax.model import CharLSTM
from charjax.ops.lstm.api import describe_implementation
from charjax.training.plan import StepPlan

# What a learning rate schedule flattens out after fewer is rarely a trained model.
_FEW_STEPS = 300


def summary(model: CharLSTM, corpus: Corpus, config: TrainConfig, plan: StepPlan, devices: Sequence[jax.Device]) -> str:
    """Returns the model, text, steps, devices, implementation and expected memory, one per line."""
    layers = f"{model.hidden_layers} layer{'s' if model.hidden_layers > 1 else ''} of {model.hidden_dim} units"
    parameters = count_parameters(model.config, model.vocab_size)
    window = f"{config.batch_size} x {config.seq_len} characters"
    kinds = Counter(device.device_kind for device in devices)
    memory = humanize.naturalsize(memory_to_train(model.config, config, model.vocab_size, devices), format="%.3g")
    few = "; few: a preset, a smaller batch or more epochs may learn more" if plan.total_steps < _FEW_STEPS else ""
    rows = {
        "model": f"{layers}, {parameters:,} parameters, {model.vocab_size} characters",
        "text": f"{len(corpus.train):,} characters to train on, {len(corpus.validation):,} to validate",
        "steps": f"{plan.steps_per_epoch:,} per epoch, {plan.total_steps:,} in total, each of {window}{few}",
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "LSTM": describe_implementation(model.implementation, model.dtype, config.seq_len),
        "memory": f"about {memory} for the training state and one batch",
    }
    return "\n".join(f"{name:<8} {value}" for name, value in rows.items())
