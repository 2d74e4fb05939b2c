"""`charjax report`: writes a report on one or more runs."""

from pathlib import Path

from charjax.cli.arguments import ReportCommand
from charjax.cli.output import report_page as say_written
from charjax.cli.run_comparison import Evaluated, axis_title, curves, differences, read_evaluated
from charjax.host.atomic_file import writing_output
from charjax.memory_budget import count_parameters
from charjax.metrics import bits_per_char, perplexity
from charjax.progress.formatting import duration, quantity
from charjax.rendering.line_chart import line_chart
from charjax.rendering.report_page import folded, heading, report_page, table, text_block
from charjax.runs.layout import SAMPLES
from charjax.runs.logs import read_samples
from charjax.runs.output_file import check_output

# Samples per run on the page, evenly spaced from the first to the last.
_MOST_SAMPLES = 8


def run(command: ReportCommand) -> None:
    """Writes the page."""
    check_output(command.out, command.runs)
    runs = read_evaluated(command.runs)
    parts = [_losses(runs), _curves(runs), *_configurations(runs)]
    samples = [part for one in zip(command.runs, runs, strict=True) for part in _samples(*one)]
    parts += [heading("Samples"), *samples] if samples else []
    title = f"{runs[0].name}: how it was trained" if len(runs) == 1 else f"{len(runs)} runs compared"
    with writing_output(command.out) as file:
        file.write(report_page(title, parts).encode())
    say_written(command.out)


def _losses(runs: list[Evaluated]) -> str:
    head = [
        "run",
        "best validation loss",
        "perplexity",
        "bits per character",
        "at epoch",
        "parameters",
        "time",
        "char/s",
    ]
    rows = []
    for run in runs:
        best = min(run.evaluations, key=lambda evaluation: evaluation.val_loss)
        speeds = [evaluation.chars_per_second for evaluation in run.evaluations if evaluation.chars_per_second]
        rows.append(
            [
                run.name,
                f"{best.val_loss:.4f}",
                f"{perplexity(best.val_loss):.3f}",
                f"{bits_per_char(best.val_loss):.3f}",
                f"{best.epoch:.2f}",
                f"{count_parameters(run.info.model, run.info.vocab.size):,}",
                duration(run.evaluations[-1].elapsed_seconds),
                quantity(sorted(speeds)[len(speeds) // 2]).strip() if speeds else "-",
            ]
        )
    return heading("Losses") + "\n" + table(head, rows)


def _curves(runs: list[Evaluated]) -> str:
    chart = line_chart(curves(runs, "characters"), across=axis_title("characters"), up="nats per character")
    return heading("Curves") + "\n" + chart


def _configurations(runs: list[Evaluated]) -> list[str]:
    """Returns what differs between the runs and, folded, what they have in common."""
    facts = []
    for run in runs:
        parts = {"text": run.info.corpus.name, "characters": f"{run.info.corpus.train_characters:,}"}
        facts.append(parts | {name: str(value) for name, value in run.info.options().items()})
    differing = differences(facts)
    common = [[name, value] for name, value in facts[0].items() if name not in differing]
    shown = [heading("Configuration")]
    if differing:
        shown.append(table(["", *(run.name for run in runs)], [[name, *row] for name, row in differing.items()]))
    what = "All options" if len(runs) == 1 else "What all runs have in common"
    return [*shown, folded(what, [table(["", "value"], common)])]


def _samples(folder: Path, run: Evaluated) -> list[str]:
    """Returns some of a run's samples: always the last one and, folded, some earlier ones."""
    samples = read_samples(folder / SAMPLES)
    if not samples:
        return []
    count = min(_MOST_SAMPLES, len(samples))
    chosen = [samples[round(n * (len(samples) - 1) / max(count - 1, 1))] for n in range(count)]
    shown = [part for title, text in chosen[:-1] for part in (heading(title, 3), text_block(text))]
    last, text = samples[-1]
    rest = [folded("Earlier samples", shown)] if shown else []
    return [heading(f"{run.name}: {last}", 3), text_block(text), *rest]
