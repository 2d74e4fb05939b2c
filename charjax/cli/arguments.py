"""The command line as dataclasses, one per command, which tyro reads; imports no jax.

The docstrings are the help texts, which keep their line breaks.
"""

# ruff: noqa: UP045 -- for `X | None` tyro imports typeguard, a quarter of the time that the help takes.

import dataclasses
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Optional

import tyro

from charjax.config import (
    BelowOne,
    Bounds,
    Checked,
    Count,
    DataConfig,
    DynamicConfig,
    ModelConfig,
    NonNegative,
    OnUnknown,
    Positive,
    SampleConfig,
    TrainConfig,
)
from charjax.errors import UserError
from charjax.training.presets import PresetName

NonNegativeCount = Annotated[int, Bounds("a whole number of at least 0", 0, 10**12)]
RunArgument = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
RunsArgument = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")
]
TextArgument = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TEXT")]


class Paths(tuple[Path, ...]):
    """Several paths; for a plain tuple tyro imports typeguard, a quarter of the time that the help takes."""


TextsArgument = Annotated[
    tyro.conf.Positional[Paths],
    tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint="(required)"),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="TEXT",
        instance_from_str=lambda given: Paths(map(Path, given)),
        is_instance=lambda value: isinstance(value, Paths),
        str_from_instance=lambda paths: [str(path) for path in paths],
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand(Checked):
    """Train a model on a text.

    The run folder keeps the model, the checkpoints, config.json, metrics.jsonl and samples.txt.
    """

    example: ClassVar[str] = "charjax train novel.txt --out runs/novel --preset small --lr 0.008"

    text: TextsArgument
    """Texts to train on, of any size: files, folders, patterns such as 'books/*.txt', or - for standard input.
    .gz, .bz2, .xz and .zst are decompressed, and of .jsonl each line's "text" is read."""

    out: Path
    """Run folder to create or, with --resume, to continue (short: -o)."""

    quiet: bool = False
    """Print nothing but warnings and errors."""

    resume: bool = False
    """Continue the run in --out exactly where it stopped, with the options it was started with."""

    init_from: Optional[Path] = None
    """Run folder or model whose weights to start from. Its vocabulary may differ. The new model has its size."""

    preset: Optional[PresetName] = None
    """Size of the model and a recipe that suits the text: tiny trains for about ten seconds on two CPU cores,
    small for one or two minutes, medium for ten minutes, large for an hour. Other options override it."""

    config: Optional[Path] = None
    """File of options: TOML, such as hidden_dim = 256, or config.json of a run. Options on the command line
    override it."""

    tensorboard: bool = False
    """Log the measurements of each evaluation for TensorBoard, in the folder tensorboard of --out."""

    tracker: Optional[Annotated[str, tyro.conf.arg(metavar="MODULE:OBJECT")]] = None
    """Log them with this object, or an object of this class, which has a method log(step, values)."""

    distributed: bool = False
    """Train together with other processes, here or on other machines, that were started with the same options.
    Under Slurm, Open MPI, Kubernetes and on TPU pods this is enough; elsewhere, also set the next three options."""

    coordinator: Optional[str] = None
    """With --distributed: HOST:PORT of process 0, where the others connect."""

    num_processes: Optional[Count] = None
    """With --distributed: number of processes."""

    process_id: Optional[NonNegativeCount] = None
    """With --distributed: number of this process, from 0."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.preset is not None:
            raise UserError("a resumed run keeps its options; omit --preset")
        if self.resume and self.init_from is not None:
            raise UserError("a resumed run continues with its own weights; omit --init-from")
        together = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        given = [name for name, value in together.items() if value is not None]
        if not given:
            return
        if not self.distributed:
            raise UserError(f"--{given[0].replace('_', '-')} needs --distributed")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            raise UserError("--coordinator, --num-processes and --process-id belong together: pass all three or none")
        if not re.fullmatch(r".+:[0-9]{1,5}", self.coordinator):
            raise UserError(f"coordinator must be HOST:PORT, not {self.coordinator!r}")
        if self.process_id >= self.num_processes:
            raise UserError(f"--process-id must be below --num-processes {self.num_processes}, not {self.process_id}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedModelConfig(ModelConfig):
    """Architecture of the network."""

    # Without `init` it is not an option here: `SweepCommand` has it, with several values.
    dropout: BelowOne = dataclasses.field(default=ModelConfig.dropout, init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedTrainConfig(TrainConfig):
    """How the models are trained."""

    # Without `init` these are not options here: `SweepCommand` has the first two, with several values, and a sweep has
    # no use for the others.
    learning_rate: Positive = dataclasses.field(default=TrainConfig.learning_rate, init=False)
    weight_decay: NonNegative = dataclasses.field(default=TrainConfig.weight_decay, init=False)
    patience: Optional[Count] = dataclasses.field(default=None, init=False)
    checkpoint_every: Optional[Count] = dataclasses.field(default=None, init=False)
    sample_context: str = dataclasses.field(default="", init=False)
    sample_length: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCommand(Checked):
    """Train a model with every combination of some settings and several seeds, all at the same time.

    Prints mean and spread of the validation loss. The folder keeps the best model as a run without checkpoints, all
    losses in sweep.json, and a picture, sweep.svg. A sweep cannot be resumed.
    """

    example: ClassVar[str] = "charjax sweep novel.txt --out runs/sweep --lr 2e-3 5e-3 1e-2 --dropout 0 0.3 --seeds 3"

    text: TextsArgument
    """Texts to train on, as for charjax train."""

    out: Path
    """Folder to create (short: -o)."""

    quiet: bool = False
    """Print nothing but warnings and errors."""

    learning_rate: tuple[Positive, ...] = (TrainConfig.learning_rate,)
    """Peak learning rates of AdamW, such as 1e-3 2e-3 4e-3 (short: --lr)."""

    dropout: tuple[BelowOne, ...] = (ModelConfig.dropout,)
    """Probabilities of zeroing each output of a layer during training, such as 0 0.3."""

    weight_decay: tuple[NonNegative, ...] = (TrainConfig.weight_decay,)
    """Decoupled weight decays of AdamW, such as 0.01 0.1."""

    seeds: Count = 1
    """Number of models per combination, with the seeds --seed, --seed + 1 and so on."""

    preset: Optional[PresetName] = None
    """Size of the model and a recipe that suits the text, as for charjax train. Other options override it."""

    config: Optional[Path] = None
    """File of options: TOML, such as dropout = [0, 0.3], or config.json of a run. Options on the command line
    override it."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: SharedModelConfig = dataclasses.field(default_factory=SharedModelConfig)
    train: SharedTrainConfig = dataclasses.field(default_factory=SharedTrainConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCommand(Checked):
    """Generate text with the best model of a run and print it as it is generated."""

    example: ClassVar[str] = 'charjax sample runs/novel --context "It was" --temperature 0.7 --length 300'

    run: RunArgument
    """Run folder."""

    context: str = ""
    """Prompt: the text to continue."""

    context_file: Optional[Path] = None
    """File to read the prompt from, of any size. It is not printed again."""

    on_unknown: OnUnknown = "error"
    """What to do about characters of the prompt that the model does not know: error, skip or replace."""

    stop: Optional[str] = None
    """End the text right after this string."""

    interactive: bool = False
    """Take turns: continue each line of input. The model remembers the whole conversation."""

    beam_width: Optional[Count] = None
    """Instead of sampling, search for the most likely text, keeping this many candidates at every character.
    --num-samples prints that many of the best. A --stop of one character ends a candidate."""

    length_penalty: Annotated[float, Bounds("a number from -10 to 10", -10, 10)] = 0.0
    """With --beam-width and --stop: alpha of Wu et al. (2016). 0 favors short texts, 1 long ones."""

    config: Optional[Path] = None
    """TOML file of options, such as temperature = 0.8. Options on the command line override it."""

    sampling: SampleConfig = dataclasses.field(default_factory=SampleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measure the best model of a run on a text: loss in nats per character, perplexity and bits per character."""

    example: ClassVar[str] = "charjax eval runs/novel another_novel.txt"

    json: bool = False
    """Print one line of JSON."""

    run: RunArgument
    """Run folder."""

    text: Annotated[tyro.conf.Positional[Optional[Path]], tyro.conf.arg(metavar="[TEXT]")] = None
    """Text, as for charjax train; by default the validation part of the text that the run was trained on."""

    on_unknown: OnUnknown = "error"
    """What to do about characters that the model does not know: error, skip or replace (by a similar one, or ?)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCommand(Checked):
    """Show how surprising each character of a text is to the best model of a run.

    Prints the loss and the most surprising places, and colors the text by surprise, in the terminal or on a page. The
    text may be far larger than memory.
    """

    example: ClassVar[str] = "charjax score runs/novel essay.txt --paint 2000 --html surprise.html"

    json: bool = False
    """Print one line of JSON."""

    run: RunArgument
    """Run folder."""

    text: TextArgument
    """Text: a file, folder or pattern as for charjax train, or - for standard input."""

    on_unknown: OnUnknown = "error"
    """What to do about characters that the model does not know: error, skip or replace (by a similar one, or ?)."""

    html: Optional[Path] = None
    """Write an HTML page to this file: the text colored by surprise, with a curve of it. Hovering over a character, or
    tapping it, shows what the model expected."""

    html_chars: Count = 100_000
    """Maximum number of characters to color on the page. Browsers are slow with millions."""

    paint: NonNegativeCount = 0
    """Characters to color in the terminal. Without colors, marks below the lines show the surprise."""

    start_line: Count = 1
    """First line to color."""

    worst: NonNegativeCount = 10
    """Most surprising places to list, at most one per 60 characters of a line."""

    top: NonNegativeCount = 5
    """Likely alternatives to name at each of these places, and at each character of the page."""

    separator: Optional[str] = None
    """String that ends a document, such as $'\\n\\n' in most shells. Each document is read on its own."""

    streams: Optional[Annotated[int, Bounds("a whole number of at least 1", 1, 4096)]] = None
    """Parts of the text to read in parallel. More is faster, but each part knows only the 256 characters before it.
    1 reads the text in one pass, exactly. By default 1 if characters x parameters is at most 2e11 (half a minute),
    otherwise 64."""

    dynamic: bool = False
    """Dynamic evaluation (Krause et al. 2018): the weights learn from the text while it is scored, in one pass.
    Prints the loss with and without learning; places and colors are those with learning."""

    dynamic_learning_rate: float = DynamicConfig.learning_rate
    """With --dynamic: about how far a weight moves per update."""

    dynamic_decay: float = DynamicConfig.decay
    """With --dynamic: fraction of the way back to its trained value that each weight is pulled per update."""

    dynamic_seq_len: int = DynamicConfig.seq_len
    """With --dynamic: characters scored between two updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separator == "":
            raise UserError("separator must be at least one character, not empty")
        if self.dynamic and self.streams not in (None, 1):
            raise UserError("streams must be 1 with --dynamic, which learns from all the preceding text")
        try:
            learning = self.learning
        except UserError as error:
            raise UserError(f"dynamic_{error}") from None
        if not self.dynamic and learning != DynamicConfig():
            raise UserError("--dynamic-learning-rate, --dynamic-decay and --dynamic-seq-len need --dynamic")

    @property
    def learning(self) -> DynamicConfig:
        """Configuration of --dynamic."""
        return DynamicConfig(
            seq_len=self.dynamic_seq_len, learning_rate=self.dynamic_learning_rate, decay=self.dynamic_decay
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Show the configuration and progress of a run, or compare several: only what differs."""

    example: ClassVar[str] = "charjax info runs/small runs/large"

    json: bool = False
    """Print one line of JSON per run."""

    runs: RunsArgument
    """Run folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Draw the curves of training and validation loss of some runs."""

    example: ClassVar[str] = "charjax plot runs/small runs/large --out curves.svg --against seconds"

    runs: RunsArgument
    """Run folders."""

    out: Path
    """Picture to write (short: -o): .svg, or .png or .pdf (with the extra `plots`)."""

    against: Literal["characters", "seconds", "epochs"] = "characters"
    """Horizontal axis: characters trained on (every pass counts), seconds of training, or epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write one page about some runs: curves, best losses, what differs in their configurations, and samples."""

    example: ClassVar[str] = "charjax report runs/small runs/large --html report.html"

    runs: RunsArgument
    """Run folders."""

    html: Path
    """Page to write, a single file that loads nothing else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronsCommand(Checked):
    """Show what single units of the network track in a text: quotes, the position in the line, and so on.

    Prints the units that correlate best with each feature of the text, and colors the text by the best of them.
    """

    example: ClassVar[str] = "charjax neurons runs/novel another_novel.txt --feature quotes,line-position"

    run: RunArgument
    """Run folder."""

    text: TextArgument
    """Text, as for charjax train, preferably one that the model was not trained on."""

    on_unknown: OnUnknown = "error"
    """What to do about characters that the model does not know: error, skip or replace (by a similar one, or ?)."""

    unit: str = ""
    """Show these units instead, as LAYER:UNIT separated by commas, such as 0:12,1:7."""

    feature: str = ""
    """Features to look for, separated by commas; by default all:
    quotes, parentheses, brackets, nesting, line-position, first-line, indentation,
    sentence-position, word-position, capitalised, capitals, digits."""

    top: Count = 2
    """Units to name per feature or, with --unit, features per unit."""

    chars: NonNegativeCount = 1000
    """Characters to color; 0 prints the table only."""

    start: Optional[NonNegativeCount] = None
    """First character to color, from 0; by default some lines before the feature first changes."""

    read: Annotated[int, Bounds("a whole number of at least 2", 2, 10**12)] = 200_000
    """Characters from the beginning of the text to search for units."""

    html: Optional[Path] = None
    """Write an HTML page to this file: the text colored by the best unit of each feature."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(Checked):
    """Write the best model of a run as a file for other programs.

    torch is a state_dict as a safetensors file. onnx is a graph for onnxruntime and others. stablehlo is a zip of
    programs that run with JAX alone. html is a page that runs the model in a browser. Prints the lines of Python that
    read the file.
    """

    example: ClassVar[str] = "charjax export runs/novel --to onnx --out novel.onnx"

    run: RunArgument
    """Run folder."""

    to: Literal["torch", "onnx", "stablehlo", "html"]
    """Format: torch, onnx, stablehlo or html."""

    out: Path
    """File to write, also -o. An existing one is replaced, unless it is a file of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCommand(Checked):
    """Make a model folder of weights that PyTorch trained: one LSTM, one linear layer, perhaps an embedding."""

    example: ClassVar[str] = "charjax import weights.pt --out novel --vocab novel.txt"

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """State_dict as .safetensors, or as .pt or .pth, which needs PyTorch to be installed. Nothing in it is executed."""

    out: Path
    """Folder to create, also -o."""

    vocab: Optional[str] = None
    """Characters of the model: ascii, bytes, a vocab.json, or a text that has all of them, whose order is then that of
    their code points. By default what the file says, if charjax export wrote it."""


Command = (
    TrainCommand
    | SweepCommand
    | SampleCommand
    | EvalCommand
    | ScoreCommand
    | InfoCommand
    | PlotCommand
    | ReportCommand
    | NeuronsCommand
    | ExportCommand
    | ImportCommand
)
COMMANDS: dict[str, type[Command]] = {
    "train": TrainCommand,
    "sweep": SweepCommand,
    "sample": SampleCommand,
    "eval": EvalCommand,
    "score": ScoreCommand,
    "info": InfoCommand,
    "plot": PlotCommand,
    "report": ReportCommand,
    "neurons": NeuronsCommand,
    "export": ExportCommand,
    "import": ImportCommand,
}
