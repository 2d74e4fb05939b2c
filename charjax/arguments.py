"""The command line's arguments, by tyro: a dataclass per command, whose docstrings are its help. Imports no jax."""

import contextlib
import dataclasses
import difflib
import io
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, cast

import tyro

from charjax import __version__
from charjax.config import DataConfig, ModelConfig, SampleConfig, TrainConfig
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

    config: Path | None = None
    """TOML file of options, such as hidden_dim = 256; those on the command line come before them."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Generates text from the best model of a run, and shows it as it comes."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    context: str = ""
    """Text to go on from."""

    config: Path | None = None
    """TOML file of options, such as temperature = 0.8; those on the command line come before them."""

    sampling: SampleConfig = dataclasses.field(default_factory=SampleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measures the best model of a run on a text: nats per character, perplexity and bits per character."""

    run: tyro.conf.Positional[Path]
    """Run folder."""

    text: tyro.conf.Positional[Path | None] = None
    """Text file; by default the validation part of the text that the run was trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Shows what a run is made of and how far it has come."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


Command = TrainCommand | SampleCommand | EvalCommand | InfoCommand
COMMANDS = {
    "train": TrainCommand,
    "sample": SampleCommand,
    "eval": EvalCommand,
    "info": InfoCommand,
}
_DESCRIPTION = f"charjax {__version__}: trains character-level LSTM language models and generates text from them."


class Parsed(NamedTuple):
    """A command, and the names of the options that the user gave, on the command line or in --config."""

    command: Command
    given: frozenset[str]


class _Flags(NamedTuple):
    """The options on a command line: names in the order of the dataclasses', and the --config file."""

    given: frozenset[str]
    config: str | None


def parse(argv: list[str]) -> Parsed:
    """Parses a command line; -h, --help and --version print and raise SystemExit(0).

    Args:
        argv: the arguments, without the program's name.

    Raises:
        UserError: an unknown command or option, a value missing, of the wrong type or out of range, or a --config file
            that cannot be read.
    """
    if argv == ["--version"]:
        print(f"charjax {__version__}")
        raise SystemExit(0)
    given: frozenset[str] = frozenset()
    if argv and argv[0] in COMMANDS:
        options = _options(COMMANDS[argv[0]])
        flags = _read_flags(argv[1:], options)
        given = flags.given
        if flags.config is not None:
            from_file = _read_config(Path(flags.config), options)
            given |= from_file.keys()
            argv = [argv[0], *(_as_flag(name, value) for name, value in from_file.items()), *argv[1:]]
    elif argv and not argv[0].startswith("-"):
        raise UserError(f"unknown command {argv[0]!r}{_nearest(argv[0], COMMANDS)}; see charjax --help")
    return Parsed(_run_tyro(argv), given)


def _options(kind: type) -> dict[str, bool]:
    """Names of a command's options, with its nested configurations', and whether each takes a value."""
    options: dict[str, bool] = {}
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            options |= _options(field.type)
        elif not getattr(field.type, "__metadata__", ()):  # positional ones are Annotated
            options[field.name] = field.type is not bool
    return options


def _read_flags(argv: list[str], options: dict[str, bool]) -> _Flags:
    """Finds the options in a command line.

    Raises:
        UserError: an option that the command does not have; it names the nearest.
    """
    given, config, position = set(), None, 0
    while position < len(argv):
        flag, equals, value = argv[position].partition("=")
        position += 1
        if not flag.startswith("--") or flag == "--help":
            continue
        name = flag[2:].replace("-", "_")
        name = name.removeprefix("no_") if name.removeprefix("no_") in options else name
        if name not in options:
            known = ["--" + option.replace("_", "-") for option in options]
            raise UserError(f"unknown option {flag}{_nearest(flag, known)}; see charjax --help")
        given.add(name)
        if options[name] and not equals:
            value = argv[position] if position < len(argv) else ""
            position += 1
        if name == "config":
            config = value
    return _Flags(frozenset(given), config)


def _nearest(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {found[0]}?" if found else ""


def _read_config(path: Path, options: dict[str, bool]) -> dict[str, Any]:
    """Reads options from a TOML file, whose tables, if any, only group them.

    Raises:
        UserError: a file that cannot be read, an unknown option, a value that no option takes.
    """
    try:
        values = _flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}") from error
    for name, value in values.items():
        if name not in options or name == "config":
            raise UserError(f"--config {path}: unknown option {name!r}{_nearest(name, options)}")
        if isinstance(value, bool) == options[name] or not isinstance(value, bool | int | float | str):
            raise UserError(f"--config {path}: {name} cannot be {value!r}")
    return values


def _flatten(table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flatten(value) if isinstance(value, dict) else {name.replace("-", "_"): value}
    return flat


def _as_flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"


def _run_tyro(argv: list[str]) -> Command:
    """Lets tyro parse; its boxed error messages become one line each.

    Raises:
        UserError: what tyro complained of.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS),
                prog="charjax",
                description=_DESCRIPTION,
                args=argv,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
            return cast(Command, command)
    except SystemExit as error:
        if error.code:
            raise UserError(f"{_first_part(complaint.getvalue())}; see charjax --help") from None
        raise


def _first_part(box: str) -> str:
    """The text of a message that tyro framed, up to its first rule."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()][1:]
    if "" in lines:
        lines = lines[: lines.index("")]
    text = re.sub(r"^Error parsing [^-][^:]*: ", "", " ".join(lines))
    return re.sub(r" +", " ", text).removesuffix(".")
