"""The recipes of the speedrun: options of `charjax train` that reach a loss on the last tenth of tinyshakespeare."""

from typing import Any

# By nats per character. Options that are not named keep charjax's defaults: one evaluation per epoch and at the end.
RECIPES: dict[float, dict[str, Any]] = {
    1.88: {
        "hidden_dim": 256, "hidden_layers": 1, "batch_size": 32, "seq_len": 32,
        "learning_rate": 0.02, "warmup_frac": 0.05, "epochs": 0.2,
    },
    1.60: {
        "hidden_dim": 256, "hidden_layers": 1, "batch_size": 32, "seq_len": 32,
        "learning_rate": 0.02, "warmup_frac": 0.03, "epochs": 0.85,
    },
    1.4697: {
        "hidden_dim": 512, "hidden_layers": 1, "dropout": 0.3, "batch_size": 32, "seq_len": 50,
        "learning_rate": 0.01, "warmup_frac": 0.02, "epochs": 3,
    },
    1.42: {
        "hidden_dim": 1024, "hidden_layers": 1, "dropout": 0.55, "batch_size": 32, "seq_len": 50,
        "learning_rate": 0.007, "weight_decay": 0.1, "warmup_frac": 0.02, "epochs": 4,
    },
    1.40: {
        "hidden_dim": 1536, "hidden_layers": 1, "dropout": 0.55, "batch_size": 32, "seq_len": 50,
        "learning_rate": 0.005, "weight_decay": 0.1, "warmup_frac": 0.02, "epochs": 4,
    },
}  # fmt: skip
# Without meaning: for a rehearsal on any text.
TINY: dict[float, dict[str, Any]] = {
    4.5: {
        "hidden_dim": 8, "hidden_layers": 2, "dropout": 0.1, "batch_size": 8, "seq_len": 10,
        "learning_rate": 0.02, "epochs": 2, "eval_every": 10,
    },
}  # fmt: skip


def as_flags(options: dict[str, Any]) -> list[str]:
    """Returns options as arguments of `charjax train`."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
