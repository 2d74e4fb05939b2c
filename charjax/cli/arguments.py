"""The command line's arguments, by tyro: a dataclass per command, whose docstrings are its help. Imports no jax."""

# ruff: noqa: UP045 -- for `X | None` tyro imports typeguard, a quarter of what it takes to show the help.

import dataclasses
import re
from pathlib import Path
from typing import Optional

import tyro

from charjax.config import DataConfig, DynamicConfig, ModelConfig, SampleConfig, TrainConfig
from charjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Trains a model on a text, and keeps everything about the run in one folder.

    The folder holds the checkpoints (the latest two and the best), config.json, metrics.jsonl and samples.txt.
    """

    text: tyro.conf.Positional[Path]
    """Text file to train on, of any length."""

    out: Path
    """Run folder to make, or with --resume to go on in."""

    resume: bool = False
    """Go on exactly where the run in --out stopped, with the options it was started with."""

    config: Optional[Path] = None
    """TOML file of options, such as hidden_dim = 256; those on the command line come before them."""

    distributed: bool = False
    """Train together with other processes, on this machine or others, that were started with the same options. Slurm,
    Open MPI, Kubernetes and TPU pods tell each process who it is; elsewhere the next three options do."""

    coordinator: Optional[str] = None
    """With --distributed, HOST:PORT of the first process, where the others find it."""

    num_processes: Optional[int] = None
    """With --distributed, how many processes there are."""

    process_id: Optional[int] = None
    """With --distributed, which of them this is, from 0."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        named = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        given = [name for name, value in named.items() if value is not None]
        if given and not self.distributed:
            raise UserError(f"{given[0]} needs --distributed")
        if given and len(given) < len(named):
            raise UserError("coordinator, num_processes and process_id belong together: give all three or none")
        if given and not re.fullmatch(r".+:[0-9]{1,5}", self.coordinator or ""):
            raise UserError(f"coordinator must be HOST:PORT, not {self.coordinator!r}")
        _check_at_least(self, {"num_processes": 1, "process_id": 0})
        if given and named["process_id"] >= named["num_processes"]:
            raise UserError(f"process_id must be below num_processes {self.num_processes}, not {self.process_id}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Generates text from the best model of a run, and shows it as it comes."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    context: str = ""
    """Text to go on from."""

    context_file: Optional[Path] = None
    """File of text to go on from, of any length, in place of --context; it is not shown again."""

    stop: Optional[str] = None
    """End a text right after this string."""

    interactive: bool = False
    """Take turns: each line of input is read, then gone on with; what came before stays in the model's state."""

    beam_width: Optional[int] = None
    """Search for the likeliest text, keeping this many at every character, in place of drawing; --num-samples shows
    as many of the best. A --stop of one character finishes a text."""

    length_penalty: float = 0.0
    """With --beam-width and --stop, alpha of Wu et al. (2016): 0 favours short texts, 1 long ones."""

    config: Optional[Path] = None
    """TOML file of options, such as temperature = 0.8; those on the command line come before them."""

    sampling: SampleConfig = dataclasses.field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        _check_at_least(self, {"beam_width": 1})
        if not -10 <= self.length_penalty <= 10:
            raise UserError(f"length_penalty must be a number from -10 to 10, not {self.length_penalty}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measures the best model of a run on a text: nats per character, perplexity and bits per character."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    text: tyro.conf.Positional[Optional[Path]] = None
    """Text file; by default the validation part of the text that the run was trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCommand:
    """Shows how surprising each character of a text is to the best model of a run.

    Prints the loss and the most surprising places, and paints the text by surprise, in the terminal or on a page. The
    text may be far larger than memory.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""

    text: tyro.conf.Positional[Path]
    """Text file."""

    html: Optional[Path] = None
    """File to write a page to, with the text painted by surprise, and what was expected told on pointing at it."""

    html_chars: int = 100_000
    """Characters to paint on the page at most; browsers take long to show millions."""

    paint: int = 0
    """Characters to paint in the terminal; where there are no colours, marks under the lines stand for them."""

    start_line: int = 1
    """Line to begin painting at."""

    worst: int = 10
    """Most surprising places to show, at most one of any 60 characters of a line."""

    top: int = 5
    """Characters to name at a place, and on the page at each, that the model held likely in place of what is there."""

    separator: Optional[str] = None
    """String that ends a document, such as $'\\n\\n' in most shells; the next is read as a text by itself."""

    streams: Optional[int] = None
    """Parts of the text to read side by side: faster, but of what is before one, only 256 characters are known in it.
    1 reads the text in one pass, exactly.
    By default 1 up to 2e11 characters times parameters, about half a minute, else 64."""

    dynamic: bool = False
    """Dynamic evaluation (Krause et al. 2018): the weights learn from the text as far as it was scored. The loss is
    told with and without; places and paintings are of the weights that learn. The text is read in one pass."""

    dynamic_learning_rate: float = DynamicConfig.learning_rate
    """With --dynamic, about how far a weight moves at each step."""

    dynamic_decay: float = DynamicConfig.decay
    """With --dynamic, what part of the way back to where they began weights are drawn at each step."""

    dynamic_seq_len: int = DynamicConfig.seq_len
    """With --dynamic, characters that are scored before the weights learn from them."""

    def __post_init__(self) -> None:
        least = {"html_chars": 1, "paint": 0, "start_line": 1, "worst": 0, "top": 0, "streams": 1}
        _check_at_least(self, least)
        if self.streams is not None and self.streams > 4096:
            raise UserError(f"streams must be at most 4096, not {self.streams}")
        if self.separator == "":
            raise UserError("separator must be at least one character, not empty")
        if self.dynamic and self.streams not in (None, 1):
            raise UserError("streams must be 1 with --dynamic, which learns from all that comes before")
        _check_dynamic(self)

    @property
    def learning(self) -> DynamicConfig:
        """How the weights learn with --dynamic."""
        return DynamicConfig(
            seq_len=self.dynamic_seq_len, learning_rate=self.dynamic_learning_rate, decay=self.dynamic_decay
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Shows what a run is made of and how far it has come."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronsCommand:
    """Shows what single units of a network follow in a text: quotes, the place in the line, and so on.

    Prints which units go most closely with each feature of the text, and paints the text by the best of them.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""

    text: tyro.conf.Positional[Path]
    """Text file; one that the model was not trained on tells more."""

    unit: str = ""
    """Units to look at, as LAYER:UNIT separated by commas, such as 0:12,1:7, in place of those found."""

    feature: str = ""
    """Features to look for, separated by commas: quotes, parentheses, brackets, nesting, line-position, first-line,
    indentation, sentence-position, word-position, capitalised, capitals or digits; by default all."""

    top: int = 2
    """Units to name for each feature, or with --unit features for each unit."""

    chars: int = 1000
    """Characters to paint; 0 for the table alone."""

    start: Optional[int] = None
    """First character to paint; by default the text's first, or some lines before the feature first changes."""

    read: int = 200_000
    """Characters to search for units on, from the text's beginning."""

    html: Optional[Path] = None
    """File to write a page to, with the text painted by the best unit of each feature."""

    def __post_init__(self) -> None:
        _check_at_least(self, {"top": 1, "chars": 0, "start": 0, "read": 2})


def _check_dynamic(command: ScoreCommand) -> None:
    try:
        learning = command.learning
    except UserError as error:
        raise UserError(f"dynamic_{error}") from None
    if not command.dynamic and learning != DynamicConfig():
        raise UserError("--dynamic must be given for the other --dynamic options to mean something")


def _check_at_least(command: object, least: dict[str, int]) -> None:
    for name, number in least.items():
        value = getattr(command, name)
        if value is not None and value < number:
            raise UserError(f"{name} must be a whole number of at least {number}, not {value}")


Command = TrainCommand | SampleCommand | EvalCommand | ScoreCommand | InfoCommand | NeuronsCommand
COMMANDS = {
    "train": TrainCommand,
    "sample": SampleCommand,
    "eval": EvalCommand,
    "score": ScoreCommand,
    "info": InfoCommand,
    "neurons": NeuronsCommand,
}
