"""`charjax neurons`."""

import difflib
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from charjax.analysis.activations import Unit, check_units, excerpt_activations
from charjax.analysis.correlations import Correlations, unit_correlations
from charjax.analysis.features import FEATURES
from charjax.cli.arguments import NeuronsCommand
from charjax.cli.output import check_page, write, write_painted
from charjax.data.character_decoder import pieces
from charjax.data.corpus import read_all_ids
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.model import model_to_use
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_page import PageWriter, Painted
from charjax.rendering.visible_text import name_character
from charjax.runs.model_file import load_params

SCALE = Scale("tanh(c)", -1.0, 1.0, 21)
NAMES = [feature.name for feature in FEATURES]
_WHOLE = (
    "0:12 is unit 12 of layer 0. r, from -1 to 1, says how closely a unit's cell state, tanh(c),\n"
    "goes with a feature, 0 not at all; it is negative where the unit falls as the feature rises.\n"
)
_HALVES = (
    f"{_WHOLE}Units were chosen on every other stretch of the text, and r is that of the stretches\n"
    "between, so that what chance brought together falls apart.\n"
)


class Painting(NamedTuple):
    """A part of the text, painted by a unit.

    Attributes:
        unit: which.
        why: what it goes with.
        begin: the first character.
        ids: [n], the characters.
        values: [n] float32, the unit's tanh(c) after each.
    """

    unit: Unit
    why: str
    begin: int
    ids: np.ndarray
    values: np.ndarray


def show_neurons(command: NeuronsCommand) -> None:
    """Prints which units follow what in a text, and paints the text by them."""
    features, units = _parse_features(command.feature), _parse_units(command.unit)
    if command.html is not None:
        check_page(command.html, text=command.text, run=command.run)
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    check_units(model, units)
    ids = read_all_ids(command.text, info.vocab)
    _check_text(command, len(ids))
    found = unit_correlations(model, params, info.vocab, ids[: command.read])
    facts = [
        ("model", f"{model.hidden_layers} x {model.hidden_dim} LSTM of {command.run}"),
        ("text", f"{command.text}, the first {found.characters:,} of {len(ids):,} characters"),
    ]
    table = unit_rows(found, units, command.top) if units else feature_rows(found, features, command.top)
    write("".join(f"{name:<7} {value}\n" for name, value in facts) + "\n" + "".join(f"{row}\n" for row in table))
    write("\n" + (_WHOLE if units else _HALVES))

    def paint(unit: Unit, feature: int | None, why: str) -> Painting:
        begin = _begin(command, found, feature, ids, info.vocab)
        part = slice(begin, min(begin + command.chars, len(ids)))
        values = excerpt_activations(model, params, info.vocab, ids, part, [unit])[:, 0]
        return Painting(unit, why, begin, ids[part], values)

    chosen = [(unit, None, _goes_with(found, unit, command.top)) for unit in units] or _best_units(found, features)
    # Without a wish the terminal shows the unit that goes with anything most closely.
    in_terminal = chosen if units or command.feature else chosen[:1]
    if command.chars:
        for one in in_terminal:
            _show(paint(*one), info.vocab)
        if not chosen:
            write("\nNo feature changes often enough: name units to paint the text by, as --unit 0:0.\n")
    if command.html is not None:
        title = f"Units of {command.run.resolve().name} on {command.text.name}"
        _write_page(command, title, facts, [paint(*one) for one in chosen], info.vocab)
        print(f"written to {command.html}", file=sys.stderr)


def _parse_features(names: str) -> list[int]:
    """Places in FEATURES of names separated by commas; all of them for none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise UserError(f"--feature: there is no feature {name!r}{hint}; there are {', '.join(NAMES)}")
    return [NAMES.index(name) for name in dict.fromkeys(wanted)] or list(range(len(NAMES)))


def _parse_units(text: str) -> list[Unit]:
    """Units written as LAYER:UNIT, separated by commas."""
    units = []
    for written in filter(None, (one.strip() for one in text.split(","))):
        numbers = re.fullmatch(r"(-?\d{1,9}):(-?\d{1,9})", written, re.ASCII)
        if not numbers:
            raise UserError(f"--unit: {written!r} is no unit; write LAYER:UNIT, both counted from 0, as 0:12")
        units.append(Unit(int(numbers[1]), int(numbers[2])))
    return list(dict.fromkeys(units))


def _check_text(command: NeuronsCommand, characters: int) -> None:
    if characters < 2:
        raise UserError(f"{command.text} has 1 character; units take at least 2 to be told apart")
    if command.start is not None and command.start >= characters:
        raise UserError(
            f"--start must be less than the {characters:,} characters of {command.text}, not {command.start}"
        )


def feature_rows(found: Correlations, features: list[int], top: int) -> Iterator[str]:
    """A table: for each feature, how much of it there is, and the units that go with it most closely."""
    names, meanings = max(map(len, NAMES)), max(len(feature.meaning) for feature in FEATURES)
    yield f"{'feature':<{names}}  {'what it is':<{meanings}}  {'in text':>7}  unit and r, the closest first"
    for number in features:
        name, meaning, most = FEATURES[number]
        mean = found.mean[number]
        much, units = f"{mean:.2%}" if most == 1 else f"{mean:.2f}", ""
        if not found.varies[number]:
            much, units = ("always" if mean else "never"), ""
        elif not found.varies_in_both[number]:
            units = "too rare: it changes in few places"
        else:
            best = found.best(number, top)
            units = "  ".join(f"{unit} {found.check[number][unit]:+.2f}" for unit in best)
        yield f"{name:<{names}}  {meaning:<{meanings}}  {much:>7}  {units}".rstrip()


def unit_rows(found: Correlations, units: list[Unit], top: int) -> Iterator[str]:
    """A table: for each unit, the features that it goes with most closely."""
    width = max(len("unit"), *(len(str(unit)) for unit in units))
    yield f"{'unit':<{width}}  feature and r, the closest first"
    for unit in units:
        yield f"{unit!s:<{width}}  {_goes_with(found, unit, top)}"


def _goes_with(found: Correlations, unit: Unit, top: int) -> str:
    r = found.whole[:, unit.layer, unit.unit]
    order = [number for number in np.argsort(-np.abs(r), kind="stable") if found.varies[number]]
    return ", ".join(f"{NAMES[number]} {r[number]:+.2f}" for number in order[:top]) or "nothing: no feature varies"


def _best_units(found: Correlations, features: list[int]) -> list[tuple[Unit, int, str]]:
    """The best unit of each feature, the closest first, with the features that a unit is the best of."""
    reasons: dict[Unit, list[tuple[float, int]]] = {}
    for number in features:
        if found.varies_in_both[number]:
            (unit,) = found.best(number, 1)
            reasons.setdefault(unit, []).append((float(found.check[number][unit]), number))
    ranked = {unit: sorted(each, key=lambda one: -abs(one[0])) for unit, each in reasons.items()}
    return [
        (unit, each[0][1], ", ".join(f"{NAMES[number]} {r:+.2f}" for r, number in each))
        for unit, each in sorted(ranked.items(), key=lambda item: -abs(item[1][0][0]))
    ]


def _begin(command: NeuronsCommand, found: Correlations, feature: int | None, ids: np.ndarray, vocab: Vocab) -> int:
    """Where painting begins: where the user says, else at the text's beginning, unless the feature comes later."""
    if command.start is not None:
        return command.start
    change = 0 if feature is None else int(found.first_change[feature])
    if change < command.chars // 2:
        return 0
    # Some lines before, from the beginning of one.
    before = max(0, change - command.chars // 4)
    breaks = np.flatnonzero(vocab.codes()[ids[before:change]] == ord("\n"))
    return before + int(breaks[0]) + 1 if breaks.size else before


def _show(painting: Painting, vocab: Vocab) -> None:
    """Paints a text in the terminal, or writes marks under its lines where there are no colours."""
    write(f"\nunit {painting.unit}: {painting.why}; from character {painting.begin:,} on\n")
    characters = ((character, painting.values[place]) for character, place in pieces(vocab, painting.ids))
    write_painted(characters, SCALE)


def _write_page(
    command: NeuronsCommand, title: str, facts: list[tuple[str, str]], paintings: list[Painting], vocab: Vocab
) -> None:
    """Writes a page that shows the text once per unit."""
    assert command.html is not None
    with PageWriter(command.html, SCALE) as page:
        for unit, why, begin, ids, values in paintings:
            page.heading(f"unit {unit}: {why}; from character {begin:,} on")
            page.paint(
                Painted(character, values[place], f"{name_character(character)}  unit {unit}  {values[place]:+.3f}")
                for character, place in pieces(vocab, ids)
            )
        page.finish(title=title, facts=facts, note=_HALVES.replace("\n", " "))
