"""`charjax sample`."""

import contextlib
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
from charjax.data.corpus import read_all_ids
from charjax.data.vocab import Vocab, encode_context, encode_stop
from charjax.errors import UserError
from charjax.generation.beam_search import beam_search_text
from charjax.generation.generate import generate_text
from charjax.generation.session import Session
from charjax.model import CharLSTM, model_to_use
from charjax.runs.model_file import load_params


def sample(command: SampleCommand) -> None:
    """Prints the context and what the model goes on with: one text as it comes, several one after another."""
    _check(command)
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if command.beam_width is not None:
        _show(command, _search(command, model, params, info.vocab)[: command.sampling.num_samples])
    elif command.sampling.num_samples > 1:
        _show(command, _draw(command, model, params, info.vocab))
    else:
        session = Session(model, params, info.vocab, command.sampling, stop=command.stop)
        if command.interactive:
            _take_turns(command, session, info.vocab)
        else:
            _stream(command, session, info.vocab)


def _check(command: SampleCommand) -> None:
    """Checks that the options go together.

    Raises:
        UserError: they do not.
    """
    several, endless = command.sampling.num_samples > 1, command.sampling.length == 0
    if command.context and command.context_file is not None:
        raise UserError("--context and --context-file are both given; leave one out")
    if command.beam_width is None and command.length_penalty:
        raise UserError("--length-penalty takes --beam-width; give it, or leave --length-penalty out")
    for given, flag in ((several, "--num-samples"), (command.beam_width is not None, "--beam-width")):
        if given and command.interactive:
            raise UserError(f"--interactive goes on with one text; leave {flag} out")
        if given and endless:
            raise UserError(f"--length 0 goes on with one text for ever; give a --length with {flag}")
    if several and command.context_file is not None:
        raise UserError("--context-file goes with one text; leave --num-samples out, or use --context")
    if command.beam_width is not None and command.context_file is not None:
        raise UserError("--context-file goes with drawing; leave --beam-width out, or use --context")
    if command.interactive and endless and command.stop is None:
        raise UserError("--interactive needs a --length or a --stop to end a turn")
    if command.beam_width is not None:
        _check_search(command.beam_width, command.sampling)


def _check_search(beam_width: int, sampling: SampleConfig) -> None:
    if sampling.num_samples > beam_width:
        raise UserError(
            f"--beam-width {beam_width} finds no more than {beam_width} texts; "
            f"raise it to {sampling.num_samples}, or lower --num-samples"
        )
    for name in ("temperature", "top_k", "top_p", "min_p", "weights"):
        if getattr(sampling, name) != getattr(SampleConfig, name):
            raise UserError(f"--{name.replace('_', '-')} goes with drawing; leave it or --beam-width out")


def _stream(command: SampleCommand, session: Session, vocab: Vocab) -> None:
    session.read(_context(command, vocab))
    pieces = session.write(_length(command))
    first = next(pieces, "")  # what is wrong with the settings is told of before anything is printed
    _write_all(itertools.chain([command.context + first], pieces))


def _write_all(pieces: Iterator[str]) -> None:
    """Writes a text and ends its last line, also where it is interrupted."""
    try:
        for piece in _whole_line_breaks(pieces):
            write(piece)
    except KeyboardInterrupt:
        write("\n")
        raise
    write("\n")


def _whole_line_breaks(pieces: Iterator[str]) -> Iterator[str]:
    r"""The same text, with no \r\n cut in two: a terminal is sent a line break for it, a picture for \r alone."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix(held)
    yield held


def _take_turns(command: SampleCommand, session: Session, vocab: Vocab) -> None:
    if command.context or command.context_file is not None:
        session.read(_context(command, vocab))
    for line in _lines():
        try:
            session.read(encode_context(vocab, line))
        except UserError as error:
            # A slip of the keyboard must not cost the text so far.
            print(f"charjax: {error}", file=sys.stderr)
            continue
        _write_all(session.write(_length(command)))


def _lines() -> Iterator[str]:
    """Lines of input without their ends; on a terminal they are prompted for and can be edited."""
    # Bytes that are no UTF-8 come as surrogates, which the vocabulary has, or whose line is told of.
    cast(io.TextIOWrapper, sys.stdin).reconfigure(errors="surrogateescape")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # not every system has it
        importlib.import_module("readline")
    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return


def _context(command: SampleCommand, vocab: Vocab) -> np.ndarray:
    if command.context_file is None:
        return encode_context(vocab, command.context)
    return read_all_ids(command.context_file, vocab)


def _length(command: SampleCommand) -> int | None:
    return command.sampling.length or None


def _draw(command: SampleCommand, model: CharLSTM, params: Params, vocab: Vocab) -> list[str]:
    config = command.sampling
    return generate_text(
        model,
        params,
        vocab,
        command.context,
        seed=config.seed,
        length=config.length,
        num_samples=config.num_samples,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        stop=command.stop,
        weights=config.weights,
    )


def _search(command: SampleCommand, model: CharLSTM, params: Params, vocab: Vocab) -> list[str]:
    assert command.beam_width is not None  # who calls has looked
    encode_context(vocab, command.context)
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
    )


def _show(command: SampleCommand, texts: list[str]) -> None:
    if len(texts) == 1:
        write(f"{command.context}{texts[0]}\n")
        return
    for number, text in enumerate(texts, start=1):
        write(f"--- {number} of {len(texts)} ---\n{command.context}{text}\n")
