"""Parses a command line and a --config file into the dataclasses of `arguments`, using tyro; does not import jax."""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import shlex
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import tyro

from charjax._version import __version__
from charjax.cli.arguments import COMMANDS, Command
from charjax.cli.completion import SHELLS, completion_script
from charjax.config import DataConfig, ModelConfig, TrainConfig
from charjax.errors import UserError
from charjax.training.presets import PresetName

_DESCRIPTION = (
    f"charjax {__version__}: train character-level LSTM language models and generate text with them.\n\n"
    "charjax COMMAND --help explains a command's options; charjax --version prints the version; "
    "charjax --print-completion bash (or zsh, tcsh) prints a script that completes commands, options and paths."
)
# Short forms of options.
_SHORT = {"-o": "--out", "--lr": "--learning-rate"}
# Earlier names of options, by command.
_FORMER = {"report": {"--html": "--out"}}
_WHOLE_NUMBERS = (int, int | None)
_NUMBERS = (*_WHOLE_NUMBERS, float, float | None)
_NUMBER_LISTS = (tuple[float, ...],)
_PATHS = (Path, Path | None)
_LARGEST_CONFIG = 1_000_000
# What the config.json of a run may set. It may be a stranger's, who must not choose --out, or the code of a --tracker.
_OF_RUN = {field.name for kind in (DataConfig, ModelConfig, TrainConfig) for field in dataclasses.fields(kind)}
_NUMERAL = re.compile(r"-[0-9.]")
(_POSITIONAL,) = tyro.conf.Positional[str].__metadata__  # type: ignore[attr-defined]


class Parsed(NamedTuple):
    """A command and the names of the options that the user gave, on the command line or in --config."""

    command: Command
    given: frozenset[str]


class _Flags(NamedTuple):
    """The option names on a command line, the --config file, the positional arguments, and the options as written."""

    given: frozenset[str]
    config: str | None
    positionals: list[str]
    options: list[str]


def parse(argv: list[str]) -> Parsed:
    """Parses a command line; -h, --help and --version print their output and raise SystemExit(0).

    Args:
        argv: the arguments, without the program name.

    Raises:
        UserError: a command or option is unknown, a value is missing, of the wrong type or out of range, or the
            --config file cannot be read.
    """
    if argv == ["--version"]:
        print(f"charjax {__version__}")
        raise SystemExit(0)
    if argv[:1] == ["--print-completion"]:
        if argv[1:] not in [[shell] for shell in SHELLS]:
            raise UserError(f"--print-completion must be {' or '.join(SHELLS)}; see charjax --help")
        commands = {
            command: {_flag(name): option for name, option in _options(kind).items()}
            for command, kind in COMMANDS.items()
        }
        print(completion_script(argv[1], commands, _SHORT), end="")
        raise SystemExit(0)
    argv = [_spelt_out(argument, _SHORT | _FORMER.get(argv[0], {})) for argument in argv]
    if not argv:
        raise UserError(f"pass a command, one of {', '.join(COMMANDS)}; see charjax --help")
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        raise UserError(f"unknown command {argv[0]!r}{_suggestion(argv[0], COMMANDS)}; see charjax --help")
    given: frozenset[str] = frozenset()
    if argv[0] in COMMANDS:
        if {"-h", "--help"} & set(argv):
            _join_lines(COMMANDS[argv[0]])
        options = _options(COMMANDS[argv[0]])
        flags = _read_flags(argv[0], argv[1:], options)
        given = flags.given
        argv = [argv[0], *flags.positionals, *flags.options]  # these may appear anywhere
        if flags.config is not None:
            from_file = _read_config(Path(flags.config), options)
            given |= from_file.keys()
            # These come last, since a list of values takes all arguments up to the next option.
            argv = [*argv, *_as_flags({name: from_file[name] for name in from_file.keys() - flags.given})]
        missing = _missing(COMMANDS[argv[0]], len(flags.positionals), given)
        if missing and not {"-h", "--help"} & set(argv):
            raise UserError(f"{argv[0]} needs {' and '.join(missing)}; see charjax {argv[0]} --help")
    return Parsed(_run_tyro(argv), given)


def _spelt_out(argument: str, flags: Mapping[str, str]) -> str:
    flag, equals, value = argument.partition("=")
    return flags.get(flag, flag) + equals + value


def _join_lines(kind: type) -> None:
    """Joins the lines of the options' docstrings, because tyro would keep the source's line breaks in the help."""
    import docstring_parser  # noqa: PLC0415 -- needed only for the help

    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            _join_lines(cast(type, field.type))
    documented = [base for base in kind.__mro__ if dataclasses.is_dataclass(base)]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for base in reversed(documented):
        for parameter in docstring_parser.parse_from_object(base).params:
            if parameter.arg_name in fields and parameter.description is not None:
                text = " ".join(parameter.description.split())
                fields[parameter.arg_name].metadata = types.MappingProxyType({"help": text})


def _options(kind: type) -> dict[str, Any]:
    """Returns the name and type of each of a command's options, including those of its nested configurations."""
    types = typing.get_type_hints(kind)  # without Annotated
    options: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            options |= _options(cast(type, field.type))
        elif field.init and not _is_positional(field):
            options[field.name] = types[field.name]
    return options


def _is_positional(field: "dataclasses.Field[Any]") -> bool:
    return _POSITIONAL in getattr(field.type, "__metadata__", ())


def _missing(kind: type, positionals: int, given: frozenset[str]) -> list[str]:
    """Returns the required arguments and options missing from a command line, as named in the help."""
    required = [
        field
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    arguments = [field.name.upper().removesuffix("S") for field in required if _is_positional(field)]
    flags = [_flag(field.name) for field in required if not _is_positional(field) and field.name not in given]
    return arguments[positionals:] + flags


def _read_flags(command: str, argv: list[str], options: dict[str, Any]) -> _Flags:
    """Finds the options on a command line.

    Raises:
        UserError: an option is unknown (the message suggests the closest one) or has no value, or there is text where a
            number is expected.
    """
    given, config, positionals, position = set(), None, list[str](), 0
    rest: list[str] = []
    while position < len(argv):
        flag, equals, value = argv[position].partition("=")
        (rest if _is_flag(flag) else positionals).append(argv[position])
        position += 1
        if not _is_flag(flag) or flag in ("-h", "--help"):
            continue
        name = flag[2:].replace("-", "_")
        if name not in options or not flag.startswith("--"):
            raise UserError(f"unknown option {flag}{_advice(flag, options)}; see charjax {command} --help")
        given.add(name)
        if options[name] is bool:
            continue
        values = (
            [value] if equals else _values_at(argv, position, flag, command, several=options[name] in _NUMBER_LISTS)
        )
        rest += [] if equals else values
        position += 0 if equals else len(values)
        value = values[-1]
        if not value and options[name] in _PATHS:
            raise UserError(f"{flag} needs a non-empty value; see charjax {command} --help")
        if options[name] in (*_NUMBERS, *_NUMBER_LISTS):
            for number in values:
                _check_number(flag, number, command, options[name])
        # tyro would list the names in a random order.
        if options[name] == PresetName | None and value not in get_args(PresetName):
            known = " or ".join(", ".join(get_args(PresetName)).rsplit(", ", 1))
            raise UserError(f"{flag} must be {known}, not {value!r}; see charjax {command} --help")
        if name == "config":
            config = value
    return _Flags(frozenset(given), config, positionals, rest)


def _values_at(argv: list[str], position: int, flag: str, command: str, *, several: bool) -> list[str]:
    """Returns the values of an option, which begin at a position: one value, or all of them up to the next option.

    Raises:
        UserError: there is no value.
    """
    end = position
    while end < len(argv) and not _is_flag(argv[end]) and (several or end == position):
        end += 1
    if end == position:
        value = argv[position] if position < len(argv) else ""
        hint = f"; to pass {value}, use {flag}={shlex.quote(value)}" if value else ""
        raise UserError(f"{flag} needs a value{hint}; see charjax {command} --help")
    return argv[position:end]


def _check_number(flag: str, value: str, command: str, kind: Any) -> None:
    if value == "None" and kind not in _NUMBER_LISTS:
        return
    try:
        int(value) if kind in _WHOLE_NUMBERS else float(value)
    except ValueError:
        rule = "a whole number" if kind in _WHOLE_NUMBERS else "numbers" if kind in _NUMBER_LISTS else "a number"
        hint = "; put the text before the options" if kind in _NUMBER_LISTS and Path(value).exists() else ""
        raise UserError(f"{flag} must be {rule}, not {value!r}{hint}; see charjax {command} --help") from None


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and argument != "-" and not _NUMERAL.match(argument)


def _advice(flag: str, options: Iterable[str]) -> str:
    """Suggests the option closest to an unknown one or, for a file or a -- before it, says how to pass the file."""
    if flag == "--" or Path(flag).exists():
        return "; put ./ before a path that begins with a dash"
    return _suggestion("--" + flag.lstrip("-"), map(_flag, options))


def _suggestion(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {nearest[0]}?" if nearest else ""


def _read_config(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Reads options from a TOML file, whose tables, if any, only group them, or from the config.json of a run.

    A run's config.json contains all training options; those that the command does not accept are ignored.

    Raises:
        UserError: the file cannot be read, an option is unknown or repeated, or a value has the wrong type.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_CONFIG + 1)
        if len(content) > _LARGEST_CONFIG:
            raise UserError(f"--config {path} is too large for an options file; choose a different one")
        if path.suffix == ".json":
            values = [item for item in _of_run(json.loads(content)) if item[0] in _OF_RUN & options.keys()]
        else:
            values = _flatten(tomllib.loads(content.decode("utf-8-sig")))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        kind = "the config.json of a run" if path.suffix == ".json" else "valid TOML"
        raise UserError(f"--config {path} is not {kind}: {error}") from error
    names = [name for name, _ in values]
    for name, value in values:
        if name == "config":
            raise UserError(f"--config {path}: config cannot be set in a config file; remove it")
        if name not in options:
            raise UserError(f"--config {path}: unknown option {name!r}{_suggestion(name, options)}")
        if names.count(name) > 1:
            raise UserError(f"--config {path}: {name} is given twice; remove one")
        if not _fits(value, options[name]):
            raise UserError(f"--config {path}: {name} cannot be {value!r}")
    return dict(values)


def _of_run(content: Any) -> list[tuple[str, Any]]:
    """Returns the options in a run's config.json; raises a ValueError for any other content."""
    parts: list[Any] = [content.get(name) for name in ("data", "model", "train")] if isinstance(content, dict) else [0]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("it does not contain data, model and train")
    return [(name, value) for part in parts for name, value in part.items() if value is not None]


def _fits(value: Any, kind: Any) -> bool:
    """Checks a TOML value against an option's type (boolean, number, numbers or string); tyro checks the rest."""
    if kind in _NUMBER_LISTS:
        return value != [] and all(_fits(one, float) for one in (value if isinstance(value, list) else [value]))
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int if kind in _WHOLE_NUMBERS else int | float if kind in _NUMBERS else str)


def _flatten(table: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in table.items():
        flat += _flatten(value) if isinstance(value, dict) else [(name.replace("-", "_"), value)]
    return flat


def _as_flags(values: dict[str, Any]) -> list[str]:
    """Converts options to command-line flags. False values are left out, since no option is true by default."""
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [_flag(name), *map(str, value)]
        elif value is not False:
            flags.append(_flag(name) if value is True else f"{_flag(name)}={value}")
    return flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run_tyro(argv: list[str]) -> Command:
    """Parses arguments with tyro, and reduces its boxed error messages to one line.

    Raises:
        UserError: tyro rejected the arguments.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            command = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS),
                prog="charjax",
                description=_DESCRIPTION,
                args=argv,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
            return cast(Command, command)
    except SystemExit as error:
        if argv[0] in COMMANDS and not error.code:
            print(f"example: {COMMANDS[argv[0]].example}")
        if error.code:
            # The dataclasses use the Python spelling of the option names.
            message = re.sub(r"^(\w+)(?= must be )", lambda name: _flag(name[1]), _first_message(messages.getvalue()))
            command_help = " ".join(["charjax", *(name for name in argv[:1] if name in COMMANDS), "--help"])
            raise UserError(f"{message}; see {command_help}") from None
        raise


def _first_message(box: str) -> str:
    """Extracts the first message from tyro's box, drawn in Unicode or ASCII; the message ends at a horizontal rule."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()][1:]
    lines = ["" if set(line) == {"-"} else line for line in lines]
    lines = lines[lines[:1] == [""] :]
    if "" in lines:
        lines = lines[: lines.index("")]
    text = re.sub(r"^Error parsing [^-][^:]*: ", "", " ".join(lines))
    return re.sub(r" +", " ", text).removesuffix(".")
