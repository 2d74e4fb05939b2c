"""What stands around the painted text of a page: heading, facts, legend, style and script."""

import base64
import hashlib
import html
from collections.abc import Sequence
from typing import NamedTuple

from charjax.rendering.color_scale import DARK_BACKGROUND, DARK_INK, LIGHT_BACKGROUND, LIGHT_INK, Colour, Scale
from charjax.rendering.visible_text import visible

_STYLE = """
body{background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.4rem;overflow-wrap:anywhere}
h2{font:1.1rem/1.5 system-ui,sans-serif;white-space:normal;margin:1.5rem 0 .5rem}
table{border-spacing:0}
th{font-weight:normal;text-align:left;vertical-align:top;padding:0 1.5rem 0 0;opacity:.75}
td{overflow-wrap:anywhere;vertical-align:top}
a{color:inherit}
b{font-weight:normal}
#legend b{display:inline-block;width:.9rem;height:1em;vertical-align:-.15em}
#text{font:15px/1.6 ui-monospace,monospace;white-space:break-spaces;overflow-wrap:anywhere;tab-size:4;
unicode-bidi:plaintext;print-color-adjust:exact;border-top:1px solid;padding-top:1rem}
#text b:hover{outline:1px solid}
#text:has(i){padding-left:4rem;position:relative}
i{position:absolute;left:0;width:3rem;text-align:right;font-style:normal;opacity:.5;user-select:none}
i::before{content:attr(id)}
i:target{opacity:1;font-weight:bold}
i:target::before{content:"\\25b8" attr(id)}
#places{font-size:.85rem;line-height:1.6;margin-bottom:1.5rem;display:block;overflow-x:auto}
#places td,#places th{padding:0 1.1rem 0 0;white-space:nowrap;font-variant-numeric:tabular-nums}
#places td.E{font:13px/1.6 ui-monospace,monospace;white-space:pre}
#places td:last-child{white-space:pre-wrap;padding:0;min-width:18rem;opacity:.75}
#tip::first-line{font-weight:bold}
#tip{position:fixed;background:var(--page);border:1px solid;border-radius:4px;padding:.3rem .6rem;
font:14px/1.4 ui-monospace,monospace;white-space:pre;pointer-events:none;max-width:90vw;overflow:hidden}
"""
_SCRIPT = """
const text = document.getElementById("text"), tip = document.getElementById("tip");
let shown = null;
function hide() {
  if (shown) shown.title = tip.textContent;
  shown = null;
  tip.hidden = true;
}
text.addEventListener("pointerover", event => {
  hide();
  shown = event.target.closest("[title]");
  if (!shown) return;
  tip.textContent = shown.title;
  shown.removeAttribute("title");
  tip.hidden = false;
  const at = shown.getClientRects()[0];
  tip.style.left = Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 4)) + "px";
  const height = tip.offsetHeight + 4;
  tip.style.top = (at.bottom + height + 4 < innerHeight ? at.bottom + 4 : at.top - height) + "px";
});
text.addEventListener("pointerleave", hide);
addEventListener("scroll", hide);
"""
TAIL = f'</div>\n<div id="tip" role="tooltip" hidden></div>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'


class Place(NamedTuple):
    """A place in the text that is told of above it.

    Attributes:
        line: which line to jump to; None where that is not on the page.
        label: where it is.
        measures: what is told of it, in columns.
        before: text before it, in one line.
        character: the character.
        value: the number that it is painted by.
        after: text after it.
        remark: a last column.
    """

    line: int | None
    label: str
    measures: Sequence[str]
    before: str
    character: str
    value: float
    after: str
    remark: str


class Places(NamedTuple):
    """A table of places.

    Attributes:
        heading: what they are.
        columns: names of the columns: label, measures, text and remark.
        rows: the places.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Place]


def head(title: str, facts: Sequence[tuple[str, str]], note: str, scale: Scale, places: Places | None = None) -> str:
    """A page up to its text; see `charjax.rendering.html_page.PageWriter.finish`."""
    style = _STYLE + _colours(scale)
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(_SCRIPT)}'; base-uri 'none'"
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in facts)
    paragraph = f"<p>{escape(note)}</p>\n" if note else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<table>\n{rows}</table>\n{_table(places, scale) if places else ''}{paragraph}"
        f'<p id="legend">{_legend(scale)}</p>\n<div id="text" lang="" translate="no">'
    )


def _table(places: Places, scale: Scale) -> str:
    rows = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in places.columns) + "</tr>\n"]
    for place in places.rows:
        label = escape(place.label)
        link = label if place.line is None else f'<a href="#{place.line}">{label}</a>'
        measures = "".join(f"<td>{escape(measure)}</td>" for measure in place.measures)
        character = f'<b class="{class_of(scale.level(place.value))}">{escape(place.character)}</b>'
        excerpt = f'<td class="E">{escape(place.before)}{character}{escape(place.after)}</td>'
        rows.append(f"<tr><td>{link}</td>{measures}{excerpt}<td>{escape(place.remark)}</td></tr>\n")
    return f'<h2>{escape(places.heading)}</h2>\n<table id="places" translate="no">\n{"".join(rows)}</table>\n'


def _legend(scale: Scale) -> str:
    steps = []
    for level in range(scale.levels):
        low, high = scale.bounds(level)
        beyond = " and more" if level == scale.levels - 1 else ""
        steps.append(f'<b class="{class_of(level)}" title="{low:.3g} to {high:.3g}{beyond}"> </b>')
    return f"{escape(scale.name)}: {scale.low:.3g} {''.join(steps)} {scale.high:.3g}"


def _colours(scale: Scale) -> str:
    def rules(*, dark: bool) -> str:
        colours = [(level, scale.colour(level, dark=dark)) for level in range(scale.levels)]
        return "\n".join(f".{class_of(level)}{{background:{_hex(colour)}}}" for level, colour in colours)

    page = f":root{{--page:{_hex(LIGHT_BACKGROUND)};--ink:{_hex(LIGHT_INK)}}}\n{rules(dark=False)}\n"
    dark_page = f":root{{--page:{_hex(DARK_BACKGROUND)};--ink:{_hex(DARK_INK)}}}\n{rules(dark=True)}"
    return f"{page}@media (prefers-color-scheme: dark){{\n{dark_page}\n}}\n"


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def class_of(level: int) -> str:
    """The class of a level's colour, one letter."""
    return chr(ord("a") + level)


def escape(text: str) -> str:
    """Text as HTML, with nothing in it hidden."""
    return html.escape(visible(text))
