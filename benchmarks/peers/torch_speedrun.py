"""The speedrun's training in PyTorch, from process start: a twin of `charjax train` with the same model and recipe.

    python -m benchmarks.peers.torch_speedrun TEXT --out FOLDER --dtype bfloat16 --options '{"hidden_dim": 256, ...}'

The same in both: the layout of the text, initial distributions, truncated BPTT with the state carried from window to
window and reset at each epoch, variational dropout, AdamW that decays matrices only, clipping by global norm, warm-up
and cosine, and the evaluation with carried state. Only random numbers differ. It prints a line per evaluation, and
leaves metrics.jsonl and the best parameters, params.npz. JAX is not imported.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.torch_device import DEVICE
from benchmarks.peers.torch_model import Model
from charjax.config import DataConfig, ModelConfig, TrainConfig

VOCAB = 128  # of charjax for a text in ASCII
HALF = {"float32": None, "bfloat16": torch.bfloat16}
# As in charjax.training.evaluate and charjax.model.
EVAL_WINDOW, EVAL_BURN_IN, EVAL_MAX_SEQUENCES, ONE_HOT_STD = 100, 200, 256, 2.0
UNCOUNTED = -100  # the label that `cross_entropy` ignores
SERVED = {
    "hidden_dim", "hidden_layers", "dropout", "batch_size", "seq_len", "epochs", "learning_rate", "warmup_frac",
    "final_lr_frac", "weight_decay", "beta1", "beta2", "clip_norm", "seed", "eval_every",
}  # fmt: skip


def read_text(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a text's ids, split as charjax splits it.

    Raises:
        ValueError: it is not in ASCII.
    """
    ids = np.frombuffer(Path(path).read_bytes(), np.uint8)
    if ids.max() >= VOCAB:
        raise ValueError(f"{path} is not in ASCII")
    cut = round(DataConfig().train_frac * len(ids))
    return ids[:cut], ids[cut:]


def lay_out(ids: np.ndarray, batch: int, window: int, burn_in: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs and labels [windows * T, B] of the sequences of `charjax.make_streams`."""
    bounds = np.arange(batch + 1) * (len(ids) - 1) // batch
    begins = np.maximum(bounds[:-1] - burn_in, 0)
    windows = -(-int(np.max(bounds[1:] - begins)) // window)
    position = begins + np.arange(windows * window + 1)[:, None]
    found = np.where(position <= bounds[1:], ids[np.minimum(position, len(ids) - 1)], 0).astype(np.int64)
    counted = (bounds[:-1] <= position[:-1]) & (position[:-1] < bounds[1:])
    return torch.from_numpy(found[:-1]).to(DEVICE), torch.from_numpy(np.where(counted, found[1:], UNCOUNTED)).to(DEVICE)


def rate_at(step: int, config: TrainConfig, total_steps: int) -> float:
    """Returns the learning rate of a step: linear warm-up, then cosine."""
    warmup = max(1, round(config.warmup_frac * total_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    cosine = (1 + math.cos(math.pi * (step + 1 - warmup) / max(1, total_steps - warmup))) / 2
    return config.learning_rate * (config.final_lr_frac + (1 - config.final_lr_frac) * cosine)


@torch.no_grad()
def initialize(model: Model) -> None:
    """Samples the parameters from charjax's distributions."""
    for name, array in model.arrays().items():
        if "bias" in name:
            array.zero_()
        elif name == "lstm.weight_ih_l0":
            array.normal_(std=ONE_HOT_STD)
        elif "weight_hh" in name:
            for gate in array.chunk(4):
                torch.nn.init.orthogonal_(gate)
        else:
            # A normal of variance 1 / inputs once it is truncated at two standard deviations.
            std = array.shape[1] ** -0.5 / 0.87962566103423978
            torch.nn.init.trunc_normal_(array, std=std, a=-2 * std, b=2 * std)
        if "bias_ih" in name:
            array.chunk(4)[1].fill_(1)  # forget gate


class Training:
    """A model in training.

    Attributes:
        step: optimizer steps taken, of `total_steps`.
    """

    def __init__(self, text: str | Path, options: dict[str, Any], dtype: str) -> None:
        """Reads the text and samples a model.

        Raises:
            ValueError: the options have one that this script does not serve.
        """
        if not set(options) <= SERVED:
            raise ValueError(f"the script has no {', '.join(sorted(set(options) - SERVED))}")
        shape, self.config = (
            kind(**{field.name: options[field.name] for field in dataclasses.fields(kind) if field.name in options})
            for kind in (ModelConfig, TrainConfig)
        )
        torch.manual_seed(self.config.seed)
        train, validation = read_text(text)
        self.inputs, self.labels = lay_out(train, self.config.batch_size, self.config.seq_len)
        sequences = min(EVAL_MAX_SEQUENCES, max(1, (len(validation) - 1) // (10 * EVAL_BURN_IN)))
        self.validation = lay_out(validation, sequences, EVAL_WINDOW, EVAL_BURN_IN)
        self.windows = len(self.inputs) // self.config.seq_len
        self.step, self.total_steps = 0, max(1, round(self.config.epochs * self.windows))
        self.half, self.dropout = HALF[dtype], shape.dropout
        self.eye = torch.eye(VOCAB, dtype=self.half or torch.float32, device=DEVICE)
        self.model = Model(VOCAB, shape.hidden_dim, shape.hidden_layers, stacked=shape.dropout > 0)
        initialize(self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (self.config.beta1, self.config.beta2)
        self.optimizer = torch.optim.AdamW(groups, self.config.learning_rate, betas, fused=True)
        self.state = self.zero = self.model.zero_state(self.config.batch_size, self.eye.dtype)

    def take_step(self) -> torch.Tensor:
        """Takes an optimizer step -> the nats of its window."""
        start = self.step % self.windows * self.config.seq_len
        window = slice(start, start + self.config.seq_len)
        inputs, labels = self.inputs[window], self.labels[window]
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.config, self.total_steps)
        self.optimizer.zero_grad()
        nats, state = self._nats(inputs, labels, self.state if start else self.zero, self._masks())
        # Padding in a sequence's last window counts as characters without loss.
        (nats / labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.state = [tuple(part.detach() for part in pair) for pair in state]
        self.step += 1
        return nats.detach()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Returns the validation loss with carried state, in nats per character."""
        inputs, labels = self.validation
        state, total = self.model.zero_state(inputs.shape[1], self.eye.dtype), 0.0
        for start in range(0, len(inputs), EVAL_WINDOW):
            window = slice(start, start + EVAL_WINDOW)
            nats, state = self._nats(inputs[window], labels[window], state, None)
            total += float(nats)
        return total / int((labels != UNCOUNTED).sum())

    def _nats(self, inputs: torch.Tensor, labels: torch.Tensor, state: Any, masks: Any) -> tuple[torch.Tensor, Any]:
        with torch.autocast(DEVICE.type, self.half, enabled=self.half is not None):
            logits, state = self.model(self.eye[inputs], state, masks)
        flat = logits.float().flatten(0, 1)
        nats = torch.nn.functional.cross_entropy(flat, labels.flatten(), ignore_index=UNCOUNTED, reduction="sum")
        return nats, state

    def _masks(self) -> list[torch.Tensor] | None:
        """Returns one mask per layer, sequence and window."""
        if not self.dropout:
            return None
        shape = self.config.batch_size, self.model.head.in_features
        kept = [torch.rand(shape, device=DEVICE) >= self.dropout for _ in self.model.parts]
        return [mask.to(self.eye.dtype) / (1 - self.dropout) for mask in kept]


def time_steps(text: str, options: dict[str, Any], dtype: str, steps: int) -> dict[str, float]:
    """Returns the seconds per step; the first ones warm up."""
    training = Training(text, options, dtype)
    for _ in range(2):
        training.take_step()
    begin = time.perf_counter()
    for _ in range(steps):
        training.take_step()
    return {"seconds": (time.perf_counter() - begin) / steps}


def train(training: Training, out: Path) -> None:
    """Trains to the last step; the first step and evaluations do not count toward the speed."""
    config = training.config
    every, best, kept = config.eval_every or training.windows, math.inf, {}
    steps, seconds = 0, 0.0
    with (out / "metrics.jsonl").open("w") as log:
        while training.step < training.total_steps:
            begin = time.perf_counter()
            training.take_step()
            if training.step > 1:
                steps, seconds = steps + 1, seconds + time.perf_counter() - begin
            if training.step % every and training.step < training.total_steps:
                continue
            loss = training.evaluate()
            if loss < best:
                best, kept = loss, {name: array.detach().clone() for name, array in training.model.arrays().items()}
            speed = steps * config.batch_size * config.seq_len / seconds if steps else None
            values = {"step": training.step, "val_loss": loss, "chars_per_second": speed}
            steps, seconds = 0, 0.0
            print(json.dumps(values), file=log, flush=True)
            print(f"step {training.step}  val {loss:.4f}", flush=True)
    np.savez(out / "params.npz", **{name: array.cpu().numpy() for name, array in kept.items()})


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=HALF, required=True)
    parser.add_argument("--options", type=json.loads, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    train(Training(arguments.text, arguments.options, arguments.dtype), arguments.out)


if __name__ == "__main__":
    main()
