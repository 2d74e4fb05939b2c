"""Writes an HTML page of text with each character colored by a number.

The page is a single file that loads nothing over the network, and its content security policy (CSP) allows only its
own script, by digest. Without the script it has no tooltips. All text is escaped, and characters that would reorder or
hide text, or that HTML cannot contain, are shown by name in a box.

The tooltip of a character is encoded as a line of a hidden element, in a few ASCII characters that html_template.js
reads: three digits for the number; INSTEAD and the name of the least expected byte, if the character is multi-byte;
then, for each alternative, a name and a digit for its probability. A name is one digit or, once the single digits are
used up, ESCAPE and three digits.
"""

import contextlib
import html
import math
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from charjax.errors import UserError
from charjax.host.atomic_file import make_folder_of, naming, replacing
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_template import Curve, ExcerptTable, escape, letter_of, page_around_text
from charjax.rendering.visible_text import BIDI_CONTROLS, name_character

_LONGEST_RUN = 4096


# Digits for the numbers in the details; none of them is a separator or has a meaning in HTML.
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!#$%()*+,./:;=?@[]^_"
ESCAPE, INSTEAD, UNKNOWN = "~", "|", "-"
_BASE = len(DIGITS)


class Painted(NamedTuple):
    """A character with its number and what was expected.

    Attributes:
        text: the character.
        value: number that determines the color; NaN for no color.
        expected: names of other characters and their probabilities.
        instead_of: name of this character's byte that they were expected instead of; empty for the whole character.
    """

    text: str
    value: float
    expected: Sequence[tuple[str, float]] = ()
    instead_of: str = ""


class PageWriter:
    """Writes a page whose text arrives before its heading and facts are known; a context manager.

    Only `finish` creates or replaces the file; until then, the text is in an unnamed file in the same folder.
    """

    def __init__(self, path: str | Path, scale: Scale, *, bits: bool = False) -> None:
        """Starts a page.

        Args:
            path: the file that `finish` writes.
            scale: the color scale.
            bits: whether the numbers are bits, so that tooltips also show probabilities.

        Raises:
            UserError: `path` exists and is not a regular file.
            OSError: the folder cannot be created or is not writable. Every OSError raised by this class names
                `path`.
        """
        # Replace the target of a symbolic link, not the link.
        self._given, self._path, self._scale = Path(path), Path(path).resolve(), scale
        if self._path.exists() and not self._path.is_file():
            kind = "folder" if self._path.is_dir() else "pipe or device"
            raise UserError(f"{path} is a {kind}; choose a file to write the page to")
        with naming(self._given):
            make_folder_of(self._path)
            # __exit__ closes them.
            self._body = tempfile.TemporaryFile("w+b", dir=self._path.parent)  # noqa: SIM115
            self._details = tempfile.TemporaryFile("w+b", dir=self._path.parent)  # noqa: SIM115
        self._run: list[str] = []
        self._attributes = ""
        self._names: dict[str, int] = {}
        self._bits = bits
        # Three digits span the scale from its low end to over 500 bits, or to its high end.
        self._step = 0.001 if bits else (scale.high - scale.low) / (_BASE**3 - 1)

    def paint(self, characters: Iterable[Painted]) -> None:
        """Appends text, consuming it as it arrives."""
        details = []
        for painted in characters:
            level = self._scale.level(painted.value)
            color = "" if level == self._scale.neutral else letter_of(level)
            mark = _mark(painted.text, colored=bool(color))
            # Adjacent characters of the same color share an element.
            attributes = (f"{color} class={mark}" if mark else color).strip()
            if attributes != self._attributes or mark or len(self._run) == _LONGEST_RUN:
                self._end_run()
                self._attributes = attributes
            self._run.append(name_character(painted.text) if mark == "X" else painted.text)
            details.append(self._detail(painted) + "\n")
        with naming(self._given):
            self._details.write("".join(details).encode())

    def heading(self, text: str) -> None:
        """Starts another text, with a heading, below the previous one."""
        self._end_run()
        self._write(f"<h2>{escape(text)}</h2>")

    def line(self, number: int) -> None:
        """Starts a line, which shows its number and can be linked to."""
        self._end_run()
        self._write(f'<i id="{number}"></i>')

    def finish(
        self,
        *,
        title: str,
        facts: Sequence[tuple[str, str]],
        table: str = "",
        note: str = "",
        excerpts: ExcerptTable | None = None,
        curve: Curve | None = None,
    ) -> None:
        """Assembles the page and moves it into place.

        Args:
            title: heading of the page.
            facts: names and values, in a table above the text.
            table: lines of a preformatted table, below the facts.
            note: paragraph between the facts and the text.
            excerpts: parts of the text, in a separate table.
            curve: a quantity plotted along the text, above it.
        """
        self._end_run()
        before, between, after = page_around_text(title, facts, table, note, self._scale, excerpts, curve)
        numbers = (
            f'data-low="{self._scale.low!r}" data-step="{self._step!r}" data-bits="{"yes" if self._bits else "no"}"'
        )
        signs = f'data-digits="{DIGITS}" data-escape="{ESCAPE}" data-instead="{INSTEAD}"'
        names = "\n".join(map(escape, self._names))
        with naming(self._given), replacing(self._path) as file:
            file.write(before.encode())
            _copy(self._body, file)
            file.write(f'{between}<div id="details" {numbers} {signs} hidden>'.encode())
            _copy(self._details, file)
            file.write(f'</div>\n<div id="names" hidden>{names}</div>{after}'.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # On a full disk, closing fails to write the rest of the text, which no longer matters.
        for file in (self._body, self._details):
            with contextlib.suppress(OSError):
                file.close()

    def _detail(self, painted: Painted) -> str:
        """Returns the encoded tooltip of a character."""
        if math.isnan(painted.value):
            return UNKNOWN
        steps = round((painted.value - self._scale.low) / self._step)
        parts = [_digits(min(max(steps, 0), _BASE**3 - 1), 3)]
        parts += [INSTEAD, self._name(painted.instead_of)] if painted.instead_of else []
        for name, probability in painted.expected:
            percent = round(100 * probability)
            parts += [self._name(name), _digits(percent if percent <= 50 else 50 + (percent - 50) // 2, 1)]
        return "".join(parts)

    def _name(self, name: str) -> str:
        number = self._names.setdefault(name, len(self._names))
        return _digits(number, 1) if number < _BASE else ESCAPE + _digits(number, 3)

    def _end_run(self) -> None:
        if self._run:
            text = html.escape("".join(self._run), quote=False)
            self._write(f"<b {self._attributes}>{text}</b>" if self._attributes else text)
            self._run = []

    def _write(self, text: str) -> None:
        with naming(self._given):
            self._body.write(text.encode())


def _copy(source: BinaryIO, file: BinaryIO) -> None:
    source.seek(0)
    shutil.copyfileobj(source, file)


def _digits(number: int, count: int) -> str:
    digits = ""
    for _ in range(count):
        number, digit = divmod(number, _BASE)
        digits = DIGITS[digit] + digits
    return digits


def _mark(character: str, *, colored: bool) -> str:
    """Returns the CSS class of an invisible character: X replaces it with its name; N, T and Z add a symbol."""
    if character.isprintable() or character == " ":
        return ""
    if character in "\n\t":
        return {"\n": "N", "\t": "T"}[character] if colored else ""
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDI_CONTROLS
    return "X" if hidden else "Z"
