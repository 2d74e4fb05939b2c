"""`charjax score`."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

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
from charjax.cli.commands.score_report import HEADING, SCALE, SurprisePage, bits_of, cut, rows_of_places
from charjax.cli.output import check_page, write, write_painted
from charjax.data.corpus import Corpus, TextPieces, read_pieces
from charjax.data.survey import digest
from charjax.errors import UserError
from charjax.metrics import bits_per_char, perplexity
from charjax.model import CharLSTM, model_to_use
from charjax.runs.metadata import RunInfo
from charjax.runs.model_file import load_params

# Up to so much work, characters x parameters, which takes a processor about half a minute, a text is read in one pass,
# beyond that as so many streams, unless the user says.
EXACT_UP_TO, STREAMS = 2 * 10**11, 64

Facts = list[tuple[str, str]]

_log = logging.getLogger("charjax")


def score_text(command: ScoreCommand) -> None:
    """Prints how well the model predicts a text and where it does worst, and paints the text."""
    params, info, _ = load_params(command.run)
    model, vocab = model_to_use(info.model, info.vocab.size), info.vocab
    if command.html is not None:
        check_page(command.html, text=command.text, run=command.run)
    text = read_pieces(command.text, vocab)
    separator = _check(command, text)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    streams = command.streams or (1 if command.dynamic or text.size * parameters <= EXACT_UP_TO else STREAMS)
    dynamic = DynamicReading(command, info) if command.dynamic else None
    totals, alternatives = Totals(), Alternatives(vocab, command.top)
    worst = WorstPlaces(command.worst, alternatives)
    with contextlib.ExitStack() as stack:
        page = None
        if command.html is not None:
            page = SurprisePage(command.html, alternatives, start_line=command.start_line, most=command.html_chars)
            stack.enter_context(page)
        # Of the likeliest, one may be the character itself, which is no alternative.
        if dynamic is None:
            scored = score_pieces(model, params, text, separator=separator, top=command.top + 1, streams=streams)
        else:
            scored = dynamic.scored(model, params, text, separator)
        watchers = [totals.add, worst.add] + ([] if page is None else [page.add])
        found = _watched(characters(vocab, scored), watchers)
        if command.paint:
            _paint(command, found)
        _read_on(found, totals, text)
        facts = [
            ("model", f"{model.hidden_layers} x {model.hidden_dim} LSTM of {command.run}"),
            *text_facts(command, totals, _way(streams) if dynamic is None else dynamic.way),
            *([] if dynamic is None else [("gradients", dynamic.measured)]),
            *loss_facts(
                totals, bytewise=vocab.kind == "bytes", static_nats=None if dynamic is None else dynamic.static_nats
            ),
        ]
        write("".join(f"{name:<11} {value}\n" for name, value in facts))
        if dynamic is not None and totals.nats > dynamic.static_nats:
            _log.warning("learning from this text made its loss higher; try a lower --dynamic-learning-rate")
        if places := worst.places():
            write(f"\n{HEADING}:\n\n")
            write("".join(f"{row}\n" for row in rows_of_places(places)))
        if page is not None:
            facts.append(("painted", painted(command.start_line, page.painted, totals.characters)))
            title = f"Surprise of {command.run.resolve().name} at {command.text.name}"
            page.finish(title, facts, places)
            print(f"written to {command.html}: {facts[-1][1]}", file=sys.stderr)


def _check(command: ScoreCommand, text: TextPieces) -> np.ndarray | None:
    """Checks that a text has what is asked for: -> the ids of the separator, None where there is none.

    Raises:
        UserError: it has not.
    """
    if text.size < 2:
        raise UserError(f"{command.text} has 1 character, and so nothing to predict; give a text of at least 2")
    if command.start_line > 1:
        lines = count_lines(text)
        if command.start_line > lines:
            raise UserError(f"--start-line must be at most {lines:,}, the lines of {command.text}")
    if command.separator is None:
        return None
    try:
        return text.vocab.encode(command.separator)
    except UserError as error:
        raise UserError(f"--separator: {error}") from None


def count_lines(text: TextPieces) -> int:
    """Reads a text once for its lines, of which the last need not end."""
    if text.vocab.unknown("\n"):
        return 1
    (newline,) = text.vocab.encode("\n")
    breaks, last = 0, newline
    for piece in text:
        breaks, last = breaks + int((piece == newline).sum()), piece[-1]
    return breaks + int(last != newline)


def _watched(blocks: Iterable[Characters], watchers: Sequence[Callable[[Characters], None]]) -> Iterator[Characters]:
    """Shows each block to all before it goes on."""
    for block in blocks:
        for watch in watchers:
            watch(block)
        yield block


def _paint(command: ScoreCommand, found: Iterator[Characters]) -> None:
    """Paints a part of the text in the terminal as it comes, and reads no farther."""
    parts = cut(found, command.start_line, command.paint)
    write_painted(((chr(c), bits) for part in parts for c, bits in zip(part.points, bits_of(part), strict=True)), SCALE)
    write("\n")


def _read_on(found: Iterator[Characters], totals: Totals, text: TextPieces) -> None:
    """Reads a text to its end, with a bar on a terminal."""
    with Progress(console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("scoring", total=text.size)
        for _ in found:
            progress.update(bar, completed=totals.ids)


def _way(streams: int) -> str:
    return "in one pass" if streams == 1 else f"as {streams} streams; --streams 1 reads in one pass, exactly"


def text_facts(command: ScoreCommand, totals: Totals, way: str) -> Facts:
    """What was read, and how.

    Raises:
        UserError: nothing in it counts.
    """
    if not totals.counted:
        raise UserError(f"every character of {command.text} begins a document; choose another --separator")
    documents, without = command.separator is not None, totals.ids - totals.counted
    first = f"the {without:,} that begin a document do not count" if documents else "the first does not count"
    facts = [("text", str(command.text)), ("read", way), ("characters", f"{totals.characters:,}; {first}")]
    return [*facts, ("documents", f"{totals.documents:,}")] if documents else facts


def loss_facts(totals: Totals, *, bytewise: bool, static_nats: float | None = None) -> Facts:
    """The loss as `charjax eval` has it, per character of the vocabulary, and what follows from it.

    With `static_nats`, the sum for weights that did not learn, theirs stand beside those of weights that did.
    """
    unit, other, others = "char", "byte", totals.counted_bytes
    if bytewise:
        unit, other, others = "byte", "char", totals.counted_characters
    facts = [
        (name, value if static_nats is None else f"{value}, static {static}")
        for (name, value), (_, static) in zip(
            _loss_rows(totals.nats, totals.counted, others, unit, other),
            _loss_rows(totals.nats if static_nats is None else static_nats, totals.counted, others, unit, other),
            strict=True,
        )
    ]
    return facts if totals.counted_bytes != totals.counted_characters else facts[:-1]


def _loss_rows(nats: float, counted: int, others: int, unit: str, other: str) -> Facts:
    loss = nats / counted
    return [
        ("loss", f"{loss:.6f} nats/{unit}"),
        ("perplexity", f"{perplexity(loss):.4f}"),
        (f"bits/{unit}", f"{bits_per_char(loss):.4f}"),
        (f"bits/{other}", f"{bits_per_char(nats / others):.4f}"),
    ]


def painted(start_line: int, number: int, characters: int) -> str:
    """How much of a text is painted."""
    if number == characters:
        return "all characters"
    return f"{number:,} of {characters:,} characters, from line {start_line:,} on"


class DynamicReading:
    """Scores a text by weights that learn from it, and counts what it costs the weights as they were.

    Attributes:
        measured: what gradients were measured on, and why.
        static_nats: the sum over all characters that count, of the weights as they were.
    """

    def __init__(self, command: ScoreCommand, info: RunInfo) -> None:
        """Finds the text that the run was trained on, if it can be had."""
        self._learning, self._top = command.learning, command.top + 1
        self._train_ids, self.measured = _training_text(info)
        self.static_nats = 0.0

    @property
    def way(self) -> str:
        """How the text is read."""
        return f"in one pass, by weights that learn after every {self._learning.seq_len:,} characters"

    def scored(
        self, model: CharLSTM, params: Params, text: Iterable[np.ndarray], separator: np.ndarray | None
    ) -> Iterator[ScoredPiece]:
        """Scores a text; see `dynamic_score_pieces`."""
        pieces = dynamic_score_pieces(
            model,
            params,
            text,
            separator=separator,
            top=self._top,
            train_ids=self._train_ids,
            seq_len=self._learning.seq_len,
            learning_rate=self._learning.learning_rate,
            decay=self._learning.decay,
        )
        for piece in pieces:
            self.static_nats += float(piece.static.nats[~piece.static.begins].sum(dtype=np.float64))
            yield piece.dynamic


def _training_text(info: RunInfo) -> tuple[Ids | None, str]:
    """What a run was trained on, if it is still there: -> (its ids, what to say of it)."""
    path = info.corpus.path
    if not path:
        return None, "measured on the text itself: the run was trained on a text that came from no file"
    try:
        if not Path(path).is_file():
            return None, f"measured on the text itself: {path}, which the run was trained on, is not there"
        if digest(path) != info.corpus.sha256:
            return None, f"measured on the text itself: {path} has changed since the run was trained on it"
    except OSError as error:
        return None, f"measured on the text itself: {path}, which the run was trained on: {error.strerror}"
    train_ids = Corpus.from_file(path, vocab=info.vocab, train_frac=info.data.train_frac).train
    return train_ids, f"measured on {path}, which the run was trained on, then on the text itself"
