"""`charjax score`: shows how surprising each character of the text is to a model."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from charjax.analysis.dynamic_evaluation import dynamic_score_pieces
from charjax.analysis.score import ScoredPiece, score_pieces
from charjax.analysis.scored_characters import Alternatives, Characters, Totals, characters
from charjax.analysis.worst_places import WorstPlaces
from charjax.array_types import Ids, Params
from charjax.cli.arguments import ScoreCommand
from charjax.cli.commands.score_report import (
    HEADING,
    SCALE,
    SurprisePage,
    bits_of,
    character_facts,
    colored_part,
    excerpt,
    json_report,
    loss_facts,
    table_of_places,
)
from charjax.cli.output import Facts, report_page, write, write_facts, write_heatmap, write_json
from charjax.data.corpus import TextPieces, read_pieces
from charjax.data.text_source import text_files
from charjax.errors import UserError
from charjax.model import CharLSTM, model_to_use
from charjax.runs.metadata import RunInfo
from charjax.runs.model_file import load_params
from charjax.runs.output_file import check_output
from charjax.runs.training_text import read_training_text

# The most work, in characters x parameters, to do in one pass unless the user asks otherwise: about half a minute on a
# CPU. Beyond that, `STREAMS` parts of the text are read in parallel.
MOST_WORK_IN_ONE_PASS, STREAMS = 2 * 10**11, 64

_log = logging.getLogger("charjax")


def run(command: ScoreCommand) -> None:
    """Prints how well the model predicts the text and where it does worst, and colors the text."""
    params, info, _ = load_params(command.run)
    model, vocab = model_to_use(info.model, info.vocab.size), info.vocab
    if command.html is not None:
        check_output(command.html, [command.run], text_files(command.text))
    text = read_pieces(command.text, vocab, separator=info.data.separator, on_unknown=command.on_unknown)
    separator = _check(command, text)
    scorer: _Scorer | _DynamicScorer
    scorer = _DynamicScorer(command, info) if command.dynamic else _Scorer(command, params, text.size)
    totals, alternatives = Totals(), Alternatives(vocab, command.top)
    worst = WorstPlaces(command.worst, alternatives)
    with contextlib.ExitStack() as stack:
        page = None
        if command.html is not None:
            page = SurprisePage(
                command.html, alternatives, start_line=command.start_line, most=command.html_chars, size=text.size
            )
            stack.enter_context(page)
        observers = [totals.add, worst.add] + ([] if page is None else [page.add])
        blocks = _observed(characters(vocab, scorer.scores(model, params, text, separator)), observers)
        if command.paint:
            _color_in_terminal(command, blocks)
        _read_to_end(blocks, totals, text)
        facts = [
            ("model", f"{model.hidden_layers} x {model.hidden_dim} LSTM of {command.run}"),
            ("text", str(command.text)),
            ("read", scorer.how),
            *character_facts(command, totals),
            *scorer.facts,
            *loss_facts(totals, bytewise=vocab.kind == "bytes", static_nats=scorer.static_nats),
        ]
        if not command.json:
            write_facts(facts)
        # Both losses are summed in float32, but in different orders.
        if scorer.static_nats is not None and totals.nats > (1 + 1e-5) * scorer.static_nats:
            _log.warning("updating the weights on this text raised its loss; try a lower --dynamic-learning-rate")
        if command.json:
            write_json(json_report(command, totals, scorer.static_nats, worst.places()))
        elif places := worst.places():
            write(f"\n{HEADING}:\n\n" + "".join(f"{row}\n" for row in table_of_places(places)))
        if page is not None and command.html is not None:  # both or neither
            facts.append(("colored", colored_part(command.start_line, page.colored, totals.characters)))
            title = f"Surprise of {command.run.resolve().name} at {command.text.name}"
            page.finish(title, facts, places)
            report_page(command.html, facts[-1][1])


def _check(command: ScoreCommand, text: TextPieces) -> np.ndarray | None:
    """Checks the options against the text, and returns the ids of the separator, or None.

    Raises:
        UserError: the text has only one character, or an option is not valid for it.
    """
    if text.size < 2:
        raise UserError(f"{command.text} has 1 character, which leaves nothing to predict; it needs at least 2")
    if command.start_line > 1:
        lines = _count_lines(text)
        if command.start_line > lines:
            raise UserError(f"--start-line must be at most {lines:,}, the number of lines in {command.text}")
    if command.separator is None:
        return None
    try:
        return text.vocab.encode(command.separator)
    except UserError as error:
        raise UserError(f"--separator: {error}") from None


def _count_lines(text: TextPieces) -> int:
    """Reads the whole text and counts its lines; the last one need not end with a newline."""
    if text.vocab.unknown("\n"):
        return 1
    (newline,) = text.vocab.encode("\n")
    breaks, last = 0, newline
    for piece in text:
        breaks, last = breaks + int((piece == newline).sum()), piece[-1]
    return breaks + int(last != newline)


class _Scorer:
    """Scores the text with fixed weights.

    Attributes:
        how: how the text is read, for the report.
        facts: further lines of the report.
        static_nats: None; see `_DynamicScorer`.
    """

    def __init__(self, command: ScoreCommand, params: Params, text_size: int) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        default = 1 if text_size * parameters <= MOST_WORK_IN_ONE_PASS else STREAMS
        self._top, self._streams = _top_k(command), command.streams or default
        several = f"as {self._streams} streams; use --streams 1 for an exact result, in one pass"
        self.how = "in one pass" if self._streams == 1 else several
        self.facts: Facts = []
        self.static_nats: float | None = None

    def scores(
        self, model: CharLSTM, params: Params, text: Iterable[np.ndarray], separator: np.ndarray | None
    ) -> Iterator[ScoredPiece]:
        """Scores the text; see `score_pieces`."""
        return score_pieces(model, params, text, separator=separator, top=self._top, streams=self._streams)


class _DynamicScorer:
    """Scores the text with weights that are updated on it.

    Attributes:
        how: how the text is read, for the report.
        facts: further lines of the report.
        static_nats: loss with the original weights, summed over all characters counted so far.
    """

    def __init__(self, command: ScoreCommand, info: RunInfo) -> None:
        self._learning, self._top = command.learning, _top_k(command)
        self._train_ids, source = _training_text(info)
        self.how = f"in one pass, updating the weights every {self._learning.seq_len:,} characters"
        self.facts: Facts = [("gradients", source)]
        self.static_nats: float | None = 0.0

    def scores(
        self, model: CharLSTM, params: Params, text: Iterable[np.ndarray], separator: np.ndarray | None
    ) -> Iterator[ScoredPiece]:
        """Scores the text; see `dynamic_score_pieces`."""
        self.static_nats = 0.0
        pieces = dynamic_score_pieces(
            model,
            params,
            text,
            separator=separator,
            top=self._top,
            train_ids=self._train_ids,
            **dataclasses.asdict(self._learning),
        )
        for piece in pieces:
            self.static_nats += float(piece.static.nats[~piece.static.begins].sum(dtype=np.float64))
            yield piece.dynamic


def _top_k(command: ScoreCommand) -> int:
    """Returns how many likely characters to score: one more than --top, as the character itself may be among them."""
    return command.top + 1


def _training_text(info: RunInfo) -> tuple[Ids | None, str]:
    """Returns a run's training text, if it still exists, and a description of what the gradients are measured on."""
    on_itself = "measured on the scored text only"
    try:
        train_ids = read_training_text(info, "the run").train
    except UserError as error:
        return None, f"{on_itself}: {error}"
    except OSError as error:
        return None, f"{on_itself}: {error.filename}, which the run was trained on, cannot be read ({error.strerror})"
    paths = ", ".join(info.corpus.paths)
    return train_ids, f"measured on the training text, {paths}, and then on the scored text"


def _observed(blocks: Iterable[Characters], observers: Sequence[Callable[[Characters], None]]) -> Iterator[Characters]:
    """Passes each block to all observers before yielding it."""
    for block in blocks:
        for observe in observers:
            observe(block)
        yield block


def _color_in_terminal(command: ScoreCommand, blocks: Iterator[Characters]) -> None:
    """Writes the part of the text to color as it is scored, consuming no more blocks than necessary."""
    parts = excerpt(blocks, command.start_line, command.paint)
    colored = ((chr(code), bits) for part in parts for code, bits in zip(part.points, bits_of(part), strict=True))
    write_heatmap(colored, SCALE)
    write("\n")


def _read_to_end(blocks: Iterator[Characters], totals: Totals, text: TextPieces) -> None:
    """Consumes the rest of the text, with a progress bar on a terminal."""
    with Progress(console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("scoring", total=text.size)
        for _ in blocks:
            progress.update(bar, completed=totals.ids)
