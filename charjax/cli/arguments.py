"""Declares the command line for tyro as dataclasses, one per command; does not import jax.

The docstrings are the help texts.
"""

# ruff: noqa: UP045 -- for `X | None`, tyro imports typeguard, which takes a quarter of the time of --help.

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
    """Multiple paths; for a plain tuple, tyro would import typeguard, which takes a quarter of the time of --help."""


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
    """Train a model on text.

    The run folder holds the model, the checkpoints, config.json, metrics.jsonl and samples.txt.
    """

    example: ClassVar[str] = "charjax train novel.txt --out runs/novel --preset small --lr 0.008"

    text: TextsArgument
    """Text to train on, of any size: files, folders, patterns such as 'books/*.txt', or - for standard input.
    .gz, .bz2, .xz and .zst files are decompressed; .jsonl files contribute the "text" field of each line."""

    out: Path
    """Run folder to create or, with --resume, to continue; an empty one may exist (short form: -o)."""

    quiet: bool = False
    """Print nothing but warnings and errors."""

    resume: bool = False
    """Continue the run in --out exactly where it stopped, with its original options."""

    init_from: Optional[Path] = None
    """Run folder or model to take the initial weights and the model size from. Its characters are kept and those
    of the text are added, unless --vocab is given."""

    preset: Optional[PresetName] = None
    """Model size and a recipe suited to the text: tiny trains for about ten seconds on two CPU cores,
    small for a minute or two, medium for ten minutes, large for twenty. Other options override it."""

    config: Optional[Path] = None
    """Options file: TOML, e.g. hidden_dim = 256, or the config.json of a run. Options on the command line
    override it."""

    tensorboard: bool = False
    """Log the results of each evaluation for TensorBoard, in the tensorboard subfolder of --out.
    --resume continues the logs."""

    tracker: Optional[Annotated[str, tyro.conf.arg(metavar="MODULE:OBJECT")]] = None
    """Log each evaluation with this object, or an instance of this class, which needs a log(step, values) method."""

    distributed: bool = False
    """Train jointly with other processes, on this or other machines, that were started with the same options.
    Under Slurm, Open MPI or Kubernetes and on TPU pods, this is enough; elsewhere, also set the next three options."""

    coordinator: Optional[str] = None
    """With --distributed: HOST:PORT of process 0, to which the others connect."""

    num_processes: Optional[Count] = None
    """With --distributed: number of processes."""

    process_id: Optional[NonNegativeCount] = None
    """With --distributed: zero-based index of this process."""

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
            raise UserError("--coordinator, --num-processes and --process-id go together; pass all three or none")
        if not re.fullmatch(r".+:[0-9]{1,5}", self.coordinator):
            raise UserError(f"coordinator must be HOST:PORT, not {self.coordinator!r}")
        if self.process_id >= self.num_processes:
            raise UserError(f"--process-id must be below --num-processes {self.num_processes}, not {self.process_id}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedModelConfig(ModelConfig):
    """Architecture of the network."""

    # `init=False` removes the option here, since `SweepCommand` declares it with multiple values.
    dropout: BelowOne = dataclasses.field(default=ModelConfig.dropout, init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedTrainConfig(TrainConfig):
    """How the models are trained."""

    # `init=False` removes these options here: `SweepCommand` declares the first two with multiple values, and a sweep
    # has no use for the others.
    learning_rate: Positive = dataclasses.field(default=TrainConfig.learning_rate, init=False)
    weight_decay: NonNegative = dataclasses.field(default=TrainConfig.weight_decay, init=False)
    patience: Optional[Count] = dataclasses.field(default=None, init=False)
    checkpoint_every: Optional[Count] = dataclasses.field(default=None, init=False)
    sample_context: str = dataclasses.field(default="", init=False)
    sample_length: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCommand(Checked):
    """Train a model for every combination of the given settings and multiple seeds, all at the same time.

    Prints the mean and spread of the validation loss. The folder holds the best model as a run without checkpoints, all
    losses in sweep.json, and a chart, sweep.svg. A sweep cannot be resumed.
    """

    example: ClassVar[str] = "charjax sweep novel.txt --out runs/sweep --lr 2e-3 5e-3 1e-2 --dropout 0 0.3 --seeds 3"

    text: TextsArgument
    """Text to train on, as for charjax train."""

    out: Path
    """Folder to create; an empty one may exist (short form: -o)."""

    quiet: bool = False
    """Print nothing but warnings and errors."""

    learning_rate: tuple[Positive, ...] = (TrainConfig.learning_rate,)
    """Peak learning rates for AdamW, e.g. 1e-3 2e-3 4e-3 (short form: --lr)."""

    dropout: tuple[BelowOne, ...] = (ModelConfig.dropout,)
    """Probabilities of zeroing each layer output during training, e.g. 0 0.3."""

    weight_decay: tuple[NonNegative, ...] = (TrainConfig.weight_decay,)
    """Decoupled weight decays for AdamW, e.g. 0.01 0.1."""

    seeds: Count = 1
    """Number of models per combination, seeded with --seed, --seed + 1 and so on."""

    preset: Optional[PresetName] = None
    """Model size and a recipe suited to the text, as for charjax train. Other options override it."""

    config: Optional[Path] = None
    """Options file: TOML, e.g. dropout = [0, 0.3], or the config.json of a run. Options on the command line
    override it."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: SharedModelConfig = dataclasses.field(default_factory=SharedModelConfig)
    train: SharedTrainConfig = dataclasses.field(default_factory=SharedTrainConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCommand(Checked):
    """Generate text with the best model of a run, printing it as it is generated."""

    example: ClassVar[str] = 'charjax sample runs/novel --context "It was" --temperature 0.7 --length 300'

    run: RunArgument
    """Run folder."""

    context: str = ""
    """Prompt: the text to continue."""

    context_file: Optional[Path] = None
    """File of any size to read the prompt from. The prompt is not printed."""

    on_unknown: OnUnknown = "error"
    """What to do with prompt characters that the model does not know: error, skip or replace."""

    stop: Optional[str] = None
    """Stop generating right after this string."""

    interactive: bool = False
    """Take turns with the model: it continues each line of input and remembers the whole conversation."""

    beam_width: Optional[Count] = None
    """Instead of sampling, search for the most likely text, keeping this many candidates at every character.
    --num-samples sets how many of the best to print. A one-character --stop ends a candidate."""

    length_penalty: Annotated[float, Bounds("a number from -10 to 10", -10, 10)] = 0.0
    """With --beam-width and --stop: length penalty alpha of Wu et al. (2016). 0 favors short text, 1 long text."""

    config: Optional[Path] = None
    """TOML options file, e.g. temperature = 0.8. Options on the command line override it."""

    sampling: SampleConfig = dataclasses.field(default_factory=SampleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Evaluate the best model of a run: loss in nats per character, perplexity and bits per character."""

    example: ClassVar[str] = "charjax eval runs/novel another_novel.txt"

    json: bool = False
    """Print one line of JSON."""

    run: RunArgument
    """Run folder."""

    text: Annotated[tyro.conf.Positional[Optional[Path]], tyro.conf.arg(metavar="[TEXT]")] = None
    """Text to evaluate on, as for charjax train; by default the validation text of the run."""

    on_unknown: OnUnknown = "error"
    """What to do with characters that the model does not know: error, skip or replace (with a similar one, or ?)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCommand(Checked):
    """Show how surprising each character of the text is to the best model of a run.

    Prints the loss and the most surprising places, and colors the text by surprise, in the terminal or on an HTML
    page. The text may be far larger than memory.
    """

    example: ClassVar[str] = "charjax score runs/novel essay.txt --paint 2000 --html surprise.html"

    json: bool = False
    """Print one line of JSON."""

    run: RunArgument
    """Run folder."""

    text: TextArgument
    """Text to score: a file, folder or pattern as for charjax train, or - for standard input."""

    on_unknown: OnUnknown = "error"
    """What to do with characters that the model does not know: error, skip or replace (with a similar one, or ?)."""

    html: Optional[Path] = None
    """HTML file to write: the text colored by surprise, with a surprise curve. Hovering over a character, or tapping
    it, shows what the model expected."""

    html_chars: Count = 100_000
    """Maximum number of characters to color on the page. With millions, browsers become slow."""

    paint: NonNegativeCount = 0
    """Number of characters to color in the terminal. Without color support, marks below each line show the surprise."""

    start_line: Count = 1
    """First line to color."""

    worst: NonNegativeCount = 10
    """Number of most surprising places to list. Places on the same line are at least 60 characters apart."""

    top: NonNegativeCount = 5
    """Number of likely alternatives to show for each of these places and for each character on the page."""

    separator: Optional[str] = None
    """String that ends a document, e.g. $'\\n\\n' in most shells. Each document is scored independently."""

    streams: Optional[Annotated[int, Bounds("a whole number of at least 1", 1, 4096)]] = None
    """Number of parts of the text to read in parallel. More is faster, but each part sees only the 256 characters
    before it. 1 reads the text in one pass, for an exact result. By default 1 if characters x parameters is at most
    2e11 (half a minute), otherwise 64."""

    dynamic: bool = False
    """Dynamic evaluation (Krause et al. 2018): the weights are updated on the text while it is scored, in one
    pass. Prints the loss with and without these updates; places and colors show the results with them."""

    dynamic_learning_rate: float = DynamicConfig.learning_rate
    """With --dynamic: roughly how far each weight moves per update."""

    dynamic_decay: float = DynamicConfig.decay
    """With --dynamic: fraction of the distance to its trained value by which each update pulls a weight back."""

    dynamic_seq_len: int = DynamicConfig.seq_len
    """With --dynamic: characters scored between weight updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separator == "":
            raise UserError("separator must be at least one character, not empty")
        if self.json and self.paint:
            raise UserError("--json prints nothing but JSON; omit --paint, or use --html")
        if self.dynamic and self.streams not in (None, 1):
            raise UserError("streams must be 1 with --dynamic, which adapts to all of the preceding text")
        try:
            learning = self.learning
        except UserError as error:
            raise UserError(f"dynamic_{error}") from None
        if not self.dynamic and learning != DynamicConfig():
            raise UserError("--dynamic-learning-rate, --dynamic-decay and --dynamic-seq-len need --dynamic")

    @property
    def learning(self) -> DynamicConfig:
        """Configuration for --dynamic."""
        return DynamicConfig(
            seq_len=self.dynamic_seq_len, learning_rate=self.dynamic_learning_rate, decay=self.dynamic_decay
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Show the configuration and progress of a run, or only the differences between multiple runs."""

    example: ClassVar[str] = "charjax info runs/small runs/large"

    json: bool = False
    """Print one line of JSON per run."""

    runs: RunsArgument
    """Run folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Plot the training and validation loss curves of one or more runs."""

    example: ClassVar[str] = "charjax plot runs/small runs/large --out curves.svg --against seconds"

    runs: RunsArgument
    """Run folders."""

    out: Path
    """Image file to write (short form: -o): .svg, or .png or .pdf (which need the `plots` extra)."""

    against: Literal["characters", "seconds", "epochs"] = "characters"
    """Horizontal axis: characters trained on (counting every pass), seconds of training, or epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write a report on one or more runs: loss curves, best losses, configuration differences and samples."""

    example: ClassVar[str] = "charjax report runs/small runs/large --out report.html"

    runs: RunsArgument
    """Run folders."""

    out: Path
    """HTML file to write (short form: -o); it is self-contained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronsCommand(Checked):
    """Show what individual hidden units track in the text: quotes, the position in the line, and so on.

    Prints the units that correlate best with each text feature, and colors the text by the best of them.
    """

    example: ClassVar[str] = "charjax neurons runs/novel another_novel.txt --feature quotes,line-position"

    run: RunArgument
    """Run folder."""

    text: TextArgument
    """Text to analyze, as for charjax train; preferably text that the model was not trained on."""

    on_unknown: OnUnknown = "error"
    """What to do with characters that the model does not know: error, skip or replace (with a similar one, or ?)."""

    unit: str = ""
    """Units to show instead, as comma-separated LAYER:UNIT pairs, e.g. 0:12,1:7."""

    feature: str = ""
    """Comma-separated features to look for; by default, all of them:
    quotes, parentheses, brackets, nesting, line-position, first-line, indentation,
    sentence-position, word-position, capitalised, capitals, digits."""

    top: Count = 2
    """Number of units to list per feature or, with --unit, of features per unit."""

    chars: NonNegativeCount = 1000
    """Number of characters to color; 0 prints only the table."""

    start: Optional[NonNegativeCount] = None
    """Zero-based position of the first character to color; by default, near where the feature varies most."""

    read: Annotated[int, Bounds("a whole number of at least 2", 2, 10**12)] = 200_000
    """Number of characters, from the beginning of the text, used to find the units."""

    html: Optional[Path] = None
    """HTML file to write: the text colored by the best unit for each feature."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(Checked):
    """Export the best model of a run for use in other programs.

    torch is a state_dict in a safetensors file. onnx is a graph for onnxruntime and other runtimes. stablehlo is a zip
    of programs that need only JAX. html is a page that runs the model in a browser. Prints the Python code that reads
    the file.
    """

    example: ClassVar[str] = "charjax export runs/novel --to onnx --out novel.onnx"

    run: RunArgument
    """Run folder."""

    to: Literal["torch", "onnx", "stablehlo", "html"]
    """Format: torch, onnx, stablehlo or html."""

    out: Path
    """File to write (short form: -o). An existing file is replaced, unless it belongs to the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCommand(Checked):
    """Create a model folder from weights trained with PyTorch: an LSTM, a linear layer and an optional embedding."""

    example: ClassVar[str] = "charjax import weights.pt --out novel --vocab novel.txt"

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """State_dict as .safetensors, or as .pt or .pth, which requires PyTorch. No code in the file is executed."""

    out: Path
    """Folder to create; an empty one may exist (short form: -o)."""

    vocab: Optional[str] = None
    """Vocabulary of the model: ascii, bytes, a vocab.json, or text that contains all of its characters, which are then
    ordered by code point. By default, the vocabulary in the file, if charjax export wrote it."""


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
