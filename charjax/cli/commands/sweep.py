"""`charjax sweep`: trains many models at the same time and keeps the best one."""

from charjax.cli.arguments import SweepCommand
from charjax.cli.commands.train import prepare
from charjax.cli.output import shell_path
from charjax.config import ModelConfig, TrainConfig
from charjax.distributed.mesh import use_all_cores
from charjax.host.memory import reuse_memory
from charjax.progress.reporter import make_reporter
from charjax.training.sweep import sweep
from charjax.training.sweep_result import SweepResult


def run(command: SweepCommand, given: frozenset[str]) -> None:
    """Trains the models, then prints their losses and the command that generates text with the best one.

    Args:
        command: the arguments.
        given: names of the options that the user set; a preset may set the others.
    """
    reuse_memory()
    use_all_cores()
    model_config, train_config = ModelConfig(**vars(command.model)), TrainConfig(**vars(command.train))
    model, corpus, train_config = prepare(command, command.data, model_config, train_config, given)
    result = sweep(
        model,
        corpus,
        train_config,
        learning_rate=command.learning_rate if "learning_rate" in given else None,
        dropout=command.dropout if "dropout" in given else None,
        weight_decay=command.weight_decay if "weight_decay" in given else None,
        seeds=command.seeds,
        out=command.out,
        progress=False,
        reporter=None if command.quiet else make_reporter(),
    )
    if command.quiet:
        return
    print(f"\n{result.table()}\n{_summary(result, shell_path(command.out))}", flush=True)


def _summary(result: SweepResult, out: str) -> str:
    best = result.best
    settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in best.setting._asdict().items())
    found = f"best model: {settings}, val loss {best.val_loss:.4f}"
    return f"{found}\nsaved in {out}; to generate text: charjax sample {out}"
