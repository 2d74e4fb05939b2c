"""`charjax sample`: generates text with a trained model."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import sys
from collections.abc import Iterator
from typing import cast

import numpy as np

from charjax.array_types import Params
from charjax.cli.arguments import SampleCommand
from charjax.cli.output import write
from charjax.config import SampleConfig
from charjax.data.corpus import read_pieces
from charjax.data.text_source import STANDARD_INPUT
from charjax.data.vocab import Vocab, encode_context, encode_stop
from charjax.errors import UserError
from charjax.generation.beam_search import beam_search_text
from charjax.generation.generate import generate_text
from charjax.generation.session import Session
from charjax.model import CharLSTM, model_to_use
from charjax.runs.model_file import load_params


def run(command: SampleCommand) -> None:
    """Prints the prompt and its continuation: one sample as it is generated, multiple samples one after another."""
    _check(command)
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if command.beam_width is not None:
        _write_texts(command, _search(command, model, params, info.vocab)[: command.sampling.num_samples])
    elif command.sampling.num_samples > 1:
        settings = dataclasses.asdict(command.sampling)
        _write_texts(
            command,
            generate_text(
                model, params, info.vocab, command.context, stop=command.stop, on_unknown=command.on_unknown, **settings
            ),
        )
    else:
        session = Session(model, params, info.vocab, command.sampling, stop=command.stop)
        if command.interactive:
            _take_turns(command, session, info.vocab)
        else:
            _stream(command, session, info.vocab)


def _check(command: SampleCommand) -> None:
    """Checks that the options can be combined.

    Raises:
        UserError: two options are mutually exclusive, or an option needs another one that is missing.
    """
    several, endless = command.sampling.num_samples > 1, command.sampling.length == 0
    if command.context and command.context_file is not None:
        raise UserError("--context and --context-file cannot be combined; pass only one")
    if command.beam_width is None and command.length_penalty:
        raise UserError("--length-penalty needs --beam-width; add it, or omit --length-penalty")
    for given, flag in ((several, "--num-samples"), (command.beam_width is not None, "--beam-width")):
        if given and command.interactive:
            raise UserError(f"--interactive generates a single continuation; omit {flag}")
        if given and endless:
            raise UserError(f"--length 0 generates a single, endless continuation; pass a --length with {flag}")
    if several and command.context_file is not None:
        raise UserError("--context-file generates a single continuation; omit --num-samples, or use --context")
    if command.beam_width is not None and command.context_file is not None:
        raise UserError("--context-file is for sampling; omit --beam-width, or use --context")
    if command.interactive and command.context_file == STANDARD_INPUT:
        raise UserError("--interactive reads standard input itself; pass a file as --context-file")
    if command.interactive and endless and command.stop is None:
        raise UserError("--interactive needs a --length or a --stop to end a turn")
    if command.beam_width is not None:
        _check_search(command.beam_width, command.sampling)


def _check_search(beam_width: int, sampling: SampleConfig) -> None:
    if sampling.num_samples > beam_width:
        raise UserError(
            f"a --beam-width of {beam_width} gives at most {beam_width} texts; "
            f"raise it to {sampling.num_samples}, or lower --num-samples"
        )
    for name in ("temperature", "top_k", "top_p", "min_p", "weights"):
        if getattr(sampling, name) != getattr(SampleConfig, name):
            raise UserError(f"--{name.replace('_', '-')} is for sampling; omit it or --beam-width")


def _stream(command: SampleCommand, session: Session, vocab: Vocab) -> None:
    session.read(_context(command, vocab))
    pieces = session.write(_length(command))
    first = next(pieces, "")  # raises if something is wrong with the settings, before anything is printed
    _write_all(itertools.chain([command.context + first], pieces))


def _write_all(pieces: Iterator[str]) -> None:
    """Writes text and ends its last line, even if interrupted."""
    try:
        for piece in _join_line_breaks(pieces):
            write(piece)
    except KeyboardInterrupt:
        write("\n")
        raise
    write("\n")


def _join_line_breaks(pieces: Iterator[str]) -> Iterator[str]:
    r"""Moves a trailing \r to the next piece, as a terminal shows \r\n as a line break but a lone \r as a symbol."""
    pending = ""
    for piece in pieces:
        text = pending + piece
        pending = "\r" if text.endswith("\r") else ""
        yield text.removesuffix(pending)
    yield pending


def _take_turns(command: SampleCommand, session: Session, vocab: Vocab) -> None:
    if command.context or command.context_file is not None:
        session.read(_context(command, vocab))
    taken = refused = 0
    for line in _input_lines():
        try:
            session.read(encode_context(vocab, line, command.on_unknown))
        except UserError as error:
            # A typo should not end the conversation.
            print(f"charjax: {error}", file=sys.stderr)
            refused += 1
            continue
        taken += 1
        _write_all(session.write(_length(command)))
    if refused and not taken:
        raise UserError("no line of the input could be continued; correct the characters named above")


def _input_lines() -> Iterator[str]:
    """Yields lines of input without their line endings; on a terminal, shows a prompt and allows line editing."""
    # Input is UTF-8 in any locale, like all text. Other bytes become surrogates, which are either in the vocabulary or
    # reported.
    cast(io.TextIOWrapper, sys.stdin).reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from (line.removesuffix("\n").removesuffix("\r") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # not on every system
        readline = importlib.import_module("readline")
        # In some locales, readline would accept only ASCII.
        for setting in ("input-meta on", "output-meta on", "convert-meta off"):
            readline.parse_and_bind(f"set {setting}")
    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return


def _context(command: SampleCommand, vocab: Vocab) -> np.ndarray:
    if command.context_file is None:
        return encode_context(vocab, command.context, command.on_unknown)
    return read_pieces(command.context_file, vocab, on_unknown=command.on_unknown).read_all()


def _length(command: SampleCommand) -> int | None:
    return command.sampling.length or None


def _search(command: SampleCommand, model: CharLSTM, params: Params, vocab: Vocab) -> list[str]:
    assert command.beam_width is not None  # checked by the caller
    if command.stop is not None and len(encode_stop(vocab, command.stop)) > 1:
        unit = "byte" if vocab.kind == "bytes" else "character"
        raise UserError(f"--stop must be a single {unit} with --beam-width, not {command.stop!r}")
    return beam_search_text(
        model,
        params,
        vocab,
        command.context,
        length=command.sampling.length,
        beam_width=command.beam_width,
        length_penalty=command.length_penalty,
        end=command.stop,
        on_unknown=command.on_unknown,
    )


def _write_texts(command: SampleCommand, texts: list[str]) -> None:
    if len(texts) == 1:
        write(f"{command.context}{texts[0]}\n")
        return
    for number, text in enumerate(texts, start=1):
        write(f"--- {number} of {len(texts)} ---\n{command.context}{text}\n")
