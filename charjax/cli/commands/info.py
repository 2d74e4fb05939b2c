"""`charjax info`: shows the configuration and progress of a run, or the differences between multiple runs."""

import dataclasses

from charjax.cli.arguments import InfoCommand
from charjax.cli.output import Facts, write_facts, write_json
from charjax.cli.run_comparison import differences, write_comparison
from charjax.memory_budget import count_parameters
from charjax.metrics import bits_per_char, perplexity
from charjax.runs.metadata import Progress, RunInfo
from charjax.runs.model_file import read_run

# Parts of the JSON that are null for a model without a record of its training.
_OF_TRAINING = ("data", "train", "corpus", "fit", "progress")


def run(command: InfoCommand) -> None:
    """Prints the configuration and progress of a run or, for multiple runs, only the differences."""
    runs = [read_run(path) for path in command.runs]
    if command.json:
        for path, (info, progress) in zip(command.runs, runs, strict=True):
            values = {**info.to_dict(), "progress": dataclasses.asdict(progress)}
            if not info.was_trained:
                values |= dict.fromkeys(_OF_TRAINING)
            write_json({"run": str(path), **values, "parameters": count_parameters(info.model, info.vocab.size)})
    elif len(runs) == 1:
        write_facts(_facts(*runs[0]))
    else:
        names = [str(path) for path in command.runs]
        write_comparison(names, differences([dict(_facts(*one)) for one in runs]))


def _facts(info: RunInfo, progress: Progress) -> Facts:
    parameters = count_parameters(info.model, info.vocab.size)
    sizes = f"{info.model.hidden_layers} x {info.model.hidden_dim} LSTM"
    facts = [
        ("model", f"{sizes}, {parameters:,} parameters, {info.model.dtype}"),
        ("vocabulary", f"{info.vocab.kind}, {info.vocab.size} characters"),
    ]
    return [*facts, *_training(info, progress)] if info.was_trained else [*facts, ("training", "not recorded")]


def _training(info: RunInfo, progress: Progress) -> Facts:
    best = "not evaluated yet"
    if progress.best_val_loss is not None:
        best = (
            f"{progress.best_val_loss:.4f} nats/char at step {progress.best_step} "
            f"(perplexity {perplexity(progress.best_val_loss):.3f}, "
            f"{bits_per_char(progress.best_val_loss):.3f} bits/char)"
        )
    minutes, seconds = divmod(round(progress.elapsed_seconds), 60)
    facts = [
        (
            "text",
            f"{info.corpus.name}, {info.corpus.train_characters:,} characters for training and "
            f"{info.corpus.validation_characters:,} for validation",
        ),
        (
            "progress",
            f"step {progress.step:,}, epoch {progress.epoch:.2f} of {info.train.epochs:g}, {minutes} min {seconds} s",
        ),
        ("best", best),
    ]
    return facts + [(f"--{name.replace('_', '-')}", repr(value)) for name, value in info.options().items()]
