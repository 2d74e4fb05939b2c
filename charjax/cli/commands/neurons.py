"""`charjax neurons`: shows which hidden units track which text features."""

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from charjax.analysis.activations import Unit, check_units, excerpt_activations
from charjax.analysis.correlations import STRETCH_TO_SHOW, Correlations, unit_correlations
from charjax.analysis.features import FEATURES
from charjax.cli.arguments import NeuronsCommand
from charjax.cli.output import Facts, report_page, write, write_facts, write_heatmap
from charjax.data.character_decoder import decode_characters
from charjax.data.corpus import read_pieces
from charjax.data.text_source import text_files
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.model import model_to_use
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_page import PageWriter, Painted
from charjax.runs.model_file import load_params
from charjax.runs.output_file import check_output

SCALE = Scale("tanh(c)", -1.0, 1.0, 21)
# The page leaves out units whose correlation is below this.
_LEAST_R = 0.2
NAMES = [feature.name for feature in FEATURES]
_EXPLANATION = (
    "0:12 is unit 12 of layer 0. r, from -1 to 1, is the correlation of its cell state, tanh(c), with a\n"
    "feature; 0 means no correlation, and r is negative if the unit falls as the feature rises.\n"
)
_EXPLANATION_OF_SEARCH = (
    f"{_EXPLANATION}Units were chosen on every other stretch of the text, and r is measured on the\n"
    "remaining stretches, so a unit that fits by chance has a small r.\n"
)


class _Painting(NamedTuple):
    """An excerpt of the text, colored by a unit.

    Attributes:
        unit: the unit.
        why: the features it correlates with.
        begin: position of the first character.
        ids: [n], the characters.
        values: [n] float32, tanh(c) of the unit after each character.
    """

    unit: Unit
    why: str
    begin: int
    ids: np.ndarray
    values: np.ndarray


def run(command: NeuronsCommand) -> None:
    """Prints which units track which features of the text, and colors the text by them."""
    features, units = _parse_features(command.feature), _parse_units(command.unit)
    if command.html is not None:
        check_output(command.html, [command.run], text_files(command.text))
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    check_units(model, units)
    text = read_pieces(command.text, info.vocab, separator=info.data.separator, on_unknown=command.on_unknown)
    ids = text.read_all()
    _check_text(command, len(ids))
    found = unit_correlations(model, params, info.vocab, ids[: command.read])
    facts = [
        ("model", f"{model.hidden_layers} x {model.hidden_dim} LSTM of {command.run}"),
        ("text", f"{command.text}, the first {found.characters:,} of {len(ids):,} characters"),
    ]
    write_facts(facts)
    table = list(_unit_rows(found, units, command.top) if units else _feature_rows(found, features, command.top))
    write("\n" + "".join(f"{row}\n" for row in table))
    write("\n" + (_EXPLANATION if units else _EXPLANATION_OF_SEARCH))

    def paint(unit: Unit, feature: int | None, why: str) -> _Painting:
        begin = _first_to_color(command, found, feature, ids, info.vocab)
        part = slice(begin, min(begin + command.chars, len(ids)))
        values = excerpt_activations(model, params, info.vocab, ids, part, [unit])[:, 0]
        return _Painting(unit, why, begin, ids[part], values)

    chosen = [(unit, None, _features_of(found, unit, command.top)) for unit in units] or _best_units(found, features)
    # Unless the user chose units or features, the terminal shows the single unit with the highest correlation.
    in_terminal = chosen if units or command.feature else chosen[:1]
    if command.chars:
        for one in in_terminal:
            _color_in_terminal(paint(*one), info.vocab)
        if not chosen:
            write("\nNo feature changes often enough; choose units to color the text by, e.g. --unit 0:0.\n")
    if command.html is not None:
        title = f"Units of {command.run.resolve().name} on {command.text.name}"
        finds = [one for one in chosen if _is_find(found, one[0], one[1])]
        shown = (
            "\n".join(table)
            if finds
            else "\n".join([*table, "", f"No unit tracks a feature: no |r| reaches {_LEAST_R:g}."])
        )
        _write_page(command, title, facts, shown, [paint(*one) for one in finds], info.vocab)
        report_page(command.html)


def _parse_features(names: str) -> list[int]:
    """Parses comma-separated names into indices of FEATURES; no names select all of them."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, n=1)
            hint = f", did you mean {nearest[0]}?" if nearest else ""
            raise UserError(f"--feature: unknown feature {name!r}{hint}; choose from {', '.join(NAMES)}")
    return [NAMES.index(name) for name in dict.fromkeys(wanted)] or list(range(len(NAMES)))


def _parse_units(text: str) -> list[Unit]:
    """Parses comma-separated units in the form LAYER:UNIT."""
    units = []
    for written in filter(None, (one.strip() for one in text.split(","))):
        numbers = re.fullmatch(r"(-?\d{1,9}):(-?\d{1,9})", written, re.ASCII)
        if not numbers:
            raise UserError(f"--unit: {written!r} is not a unit; use LAYER:UNIT, both zero-based, e.g. 0:12")
        units.append(Unit(int(numbers[1]), int(numbers[2])))
    return list(dict.fromkeys(units))


def _check_text(command: NeuronsCommand, characters: int) -> None:
    if characters < 2:
        raise UserError(f"{command.text} has 1 character; use text of at least 2 characters to compare units")
    if command.start is not None and command.start >= characters:
        raise UserError(f"--start must be less than {characters:,}, the length of {command.text}, not {command.start}")


def _feature_rows(found: Correlations, features: list[int], top: int) -> Iterator[str]:
    """Yields the lines of a table that shows how frequent each feature is and which units correlate best with it."""
    names, meanings = max(map(len, NAMES)), max(len(feature.meaning) for feature in FEATURES)
    yield f"{'feature':<{names}}  {'what it is':<{meanings}}  {'in text':>7}  units and r, best first"
    for number in features:
        name, meaning, most = FEATURES[number]
        mean = found.mean[number]
        frequency, units = f"{mean:.2%}" if most == 1 else f"{mean:.2f}", ""
        if not found.varies[number]:
            frequency, units = ("always" if mean else "never"), ""
        elif not found.varies_in_both[number]:
            units = "too rare: it changes in too few places"
        else:
            best = found.best(number, top)
            units = "  ".join(f"{unit} {found.check[number][unit]:+.2f}" for unit in best)
        yield f"{name:<{names}}  {meaning:<{meanings}}  {frequency:>7}  {units}".rstrip()


def _unit_rows(found: Correlations, units: list[Unit], top: int) -> Iterator[str]:
    """Yields the lines of a table that shows which features each unit correlates best with."""
    width = max(len("unit"), *(len(str(unit)) for unit in units))
    yield f"{'unit':<{width}}  features and r, best first"
    for unit in units:
        yield f"{unit!s:<{width}}  {_features_of(found, unit, top)}"


def _features_of(found: Correlations, unit: Unit, top: int) -> str:
    r = found.whole[:, unit.layer, unit.unit]
    order = [number for number in np.argsort(-np.abs(r), kind="stable") if found.varies[number]]
    return ", ".join(f"{NAMES[number]} {r[number]:+.2f}" for number in order[:top]) or "none: no feature varies"


def _best_units(found: Correlations, features: list[int]) -> list[tuple[Unit, int, str]]:
    """Returns the best unit for each feature as (unit, best feature, features in words), highest correlation first."""
    features_of: dict[Unit, list[tuple[float, int]]] = {}
    for number in features:
        if found.varies_in_both[number]:
            (unit,) = found.best(number, 1)
            features_of.setdefault(unit, []).append((float(found.check[number][unit]), number))
    ranked = {unit: sorted(each, key=lambda one: -abs(one[0])) for unit, each in features_of.items()}
    return [
        (unit, each[0][1], ", ".join(f"{NAMES[number]} {r:+.2f}" for r, number in each))
        for unit, each in sorted(ranked.items(), key=lambda item: -abs(item[1][0][0]))
    ]


def _is_find(found: Correlations, unit: Unit, feature: int | None) -> bool:
    """Returns True for a unit that is worth showing on the page: the user chose it, or it tracks its feature."""
    return feature is None or abs(float(found.check[feature][unit])) >= _LEAST_R


def _first_to_color(
    command: NeuronsCommand, found: Correlations, feature: int | None, ids: np.ndarray, vocab: Vocab
) -> int:
    """Returns --start if given; otherwise a line start near where the feature varies most, or 0 without a feature."""
    if command.start is not None:
        return command.start
    if feature is None:
        return 0
    # Center the excerpt on the stretch where the feature varies most, or start it there if the stretch is longer.
    around = max(0, command.chars - STRETCH_TO_SHOW) // 2
    before = max(0, min(int(found.liveliest[feature]) - around, len(ids) - command.chars))
    breaks = np.flatnonzero(vocab.codes()[ids[before : before + command.chars // 4]] == ord("\n"))
    return before + int(breaks[0]) + 1 if before and breaks.size else before


def _color_in_terminal(painting: _Painting, vocab: Vocab) -> None:
    write(f"\nunit {painting.unit}: {painting.why}; from character {painting.begin:,} on\n")
    characters = ((character, painting.values[place]) for character, place in decode_characters(vocab, painting.ids))
    write_heatmap(characters, SCALE)


def _write_page(
    command: NeuronsCommand, title: str, facts: Facts, table: str, paintings: list[_Painting], vocab: Vocab
) -> None:
    """Writes a page with the table, followed by the text once per unit."""
    assert command.html is not None
    with PageWriter(command.html, SCALE) as page:
        for unit, why, begin, ids, values in paintings:
            page.heading(f"unit {unit}: {why}; from character {begin:,} on")
            page.paint(Painted(character, values[place]) for character, place in decode_characters(vocab, ids))
        page.finish(title=title, facts=facts, table=table, note=_EXPLANATION_OF_SEARCH.replace("\n", " "))
