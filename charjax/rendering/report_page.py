"""Builds a page of headings, tables, charts and text, in one file that loads nothing and runs no script."""

import html
import importlib.resources
from collections.abc import Sequence
from string import Template

from charjax.rendering.html_template import content_policy, escape
from charjax.rendering.visible_text import printable


def report_page(title: str, parts: Sequence[str]) -> str:
    """Returns a page made of HTML parts from the functions below."""
    style = _read("css")
    policy = content_policy(style)
    return Template(_read("html")).substitute(policy=policy, title=escape(title), style=style, body="\n".join(parts))


def heading(text: str, level: int = 2) -> str:
    """Returns a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def text_block(text: str) -> str:
    """Returns preformatted text, with its line breaks preserved."""
    return f"<pre>{html.escape(printable(text))}</pre>"


def folded(summary: str, parts: Sequence[str]) -> str:
    """Returns parts that unfold when clicked."""
    return f"<details><summary>{escape(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"


def _read(extension: str) -> str:
    file = importlib.resources.files(__package__).joinpath(f"report_template.{extension}")
    return file.read_text(encoding="utf-8").removesuffix("\n")
