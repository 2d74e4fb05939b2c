"""Builds everything on a page around the colored text, from html_template.html, .css and .js."""

import base64
import hashlib
import html
import importlib.resources
import math
import re
from collections.abc import Sequence
from string import Template
from typing import NamedTuple

from charjax.rendering.color_scale import DARK_BACKGROUND, DARK_INK, LIGHT_BACKGROUND, LIGHT_INK, RGB, Scale
from charjax.rendering.visible_text import visible


class Excerpt(NamedTuple):
    """A character of the text with its surroundings, shown as a table row above the text.

    Attributes:
        line: line of the text to link to; None if it is not on the page.
        label: position, in words.
        measures: further columns.
        before: text before the character, without line breaks.
        character: the character.
        value: number that determines its color.
        after: text after the character.
        remark: last column.
    """

    line: int | None
    label: str
    measures: Sequence[str]
    before: str
    character: str
    value: float
    after: str
    remark: str


class ExcerptTable(NamedTuple):
    """A table of excerpts.

    Attributes:
        heading: title of the table.
        columns: headings of the columns: label, measures, excerpt and remark.
        rows: the excerpts.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Excerpt]


class Curve(NamedTuple):
    """A quantity plotted along the text.

    Attributes:
        caption: what it is, in words.
        values: its means over stretches of equal length; NaN where it is unknown.
    """

    caption: str
    values: Sequence[float]


def page_around_text(
    title: str,
    facts: Sequence[tuple[str, str]],
    table: str,
    note: str,
    scale: Scale,
    excerpts: ExcerptTable | None,
    curve: Curve | None,
) -> tuple[str, str, str]:
    """Returns the parts of a page before its text, between the text and the character details, and after the details.

    The arguments are those of `charjax.rendering.html_page.PageWriter.finish`.
    """
    style, script = _read("css") + color_rules(scale), _read("js")
    before, between, after = re.split(r"\$text|\$details", _read("html"))
    filled = Template(before).substitute(
        policy=content_policy(style, script),
        title=escape(title),
        style=style,
        facts="".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in facts),
        excerpts=_table(excerpts, scale) if excerpts else "",
        table=f"<pre>{escape(table)}</pre>\n" if table else "",
        curve=_drawn(curve) if curve else "",
        note=f"<p>{escape(note)}</p>\n" if note else "",
        legend=_legend(scale),
    )
    return filled, between, Template(after).substitute(script=script)


def content_policy(style: str, script: str | None = None) -> str:
    """Returns a content security policy that allows one style, perhaps one script, and no request to any network."""
    scripts = "" if script is None else f"script-src '{_digest(script)}'; "
    return f"default-src 'none'; style-src '{_digest(style)}'; {scripts}base-uri 'none'; form-action 'none'"


def letter_of(level: int) -> str:
    """Returns the letter for a step's color: an attribute where most characters need one, a class elsewhere."""
    return chr(ord("a") + level)


def escape(text: str) -> str:
    """Returns text as HTML, with every invisible character named."""
    return html.escape(visible(text))


def color_rules(scale: Scale, selector: str = "[{}]") -> str:
    """Returns the CSS for a scale's steps and for the page's background and ink, on light and dark pages.

    Args:
        scale: the scale.
        selector: selects the elements of a step, with its letter in place of {}.
    """

    def rules(*, dark: bool) -> str:
        colors = [(level, scale.color(level, dark=dark)) for level in range(scale.levels)]
        return "\n".join(f"{selector.format(letter_of(level))}{{background:{_hex(color)}}}" for level, color in colors)

    page = f":root{{--page:{_hex(LIGHT_BACKGROUND)};--ink:{_hex(LIGHT_INK)}}}\n{rules(dark=False)}\n"
    dark_page = f":root{{--page:{_hex(DARK_BACKGROUND)};--ink:{_hex(DARK_INK)}}}\n{rules(dark=True)}"
    return f"\n{page}@media (prefers-color-scheme: dark){{\n{dark_page}\n}}\n"


def _read(extension: str) -> str:
    file = importlib.resources.files(__package__).joinpath(f"html_template.{extension}")
    return file.read_text(encoding="utf-8").removesuffix("\n")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _drawn(curve: Curve) -> str:
    """Draws a curve over an axis that starts at 0, with gaps where its values are unknown."""
    most = max((value for value in curve.values if not math.isnan(value)), default=0.0) or 1.0
    parts: list[str] = []
    for number, value in enumerate(curve.values):
        if math.isnan(value):
            parts.append("")
        else:
            begins = not parts or not parts[-1]
            parts.append(f"{'M' if begins else 'L'}{number} {100 * (1 - value / most):.1f}")
    line = f'<path d="{"".join(parts)}" fill="none" stroke="currentColor" vector-effect="non-scaling-stroke"/>'
    box = f'viewBox="0 0 {max(len(curve.values) - 1, 1)} 100" preserveAspectRatio="none"'
    caption = escape(f"{curve.caption}; from 0 to {most:.3g}")
    return f'<figure><svg id="curve" {box}>{line}</svg><figcaption>{caption}</figcaption></figure>\n'


def _table(excerpts: ExcerptTable, scale: Scale) -> str:
    rows = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in excerpts.columns) + "</tr>\n"]
    for row in excerpts.rows:
        label = escape(row.label)
        link = label if row.line is None else f'<a href="#{row.line}">{label}</a>'
        measures = "".join(f"<td>{escape(measure)}</td>" for measure in row.measures)
        character = f"<b {letter_of(scale.level(row.value))}>{escape(row.character)}</b>"
        excerpt = f'<td class="excerpt">{escape(row.before)}{character}{escape(row.after)}</td>'
        rows.append(f"<tr><td>{link}</td>{measures}{excerpt}<td>{escape(row.remark)}</td></tr>\n")
    return f'<h2>{escape(excerpts.heading)}</h2>\n<table id="excerpts" translate="no">\n{"".join(rows)}</table>\n'


def _legend(scale: Scale) -> str:
    steps = []
    for level in range(scale.levels):
        low, high = scale.bounds(level)
        beyond = " and more" if level == scale.levels - 1 else ""
        steps.append(f'<b {letter_of(level)} title="{low:.3g} to {high:.3g}{beyond}"> </b>')
    return f"{escape(scale.name)}: {scale.low:.3g} {''.join(steps)} {scale.high:.3g}"


def _hex(color: RGB) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)
