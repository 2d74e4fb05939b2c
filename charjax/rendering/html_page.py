"""An HTML page with text in which a number sets the color of each character.

The page is one file that loads nothing from a network, and its content security policy (CSP) allows only its own
script, by digest. It also works without the script, which only shows tooltips sooner. All text is escaped, and
characters that would reorder or hide text, or that HTML cannot contain, are shown by name in a frame.
"""

import contextlib
import html
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from charjax.errors import UserError
from charjax.host.atomic_file import naming, replacing
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_template import ExcerptTable, class_of, escape, page_around_text
from charjax.rendering.visible_text import BIDI_CONTROLS, name_character

_LONGEST_RUN = 4096


class Painted(NamedTuple):
    """A character with its number and tooltip.

    Attributes:
        text: the character, or several that share number and tooltip.
        value: number that gives the color; NaN for none.
        tip: tooltip, of one or more lines; empty for none.
    """

    text: str
    value: float
    tip: str = ""


class PageWriter:
    """Writes a page whose text comes before its heading and facts are known; a context manager.

    Only `finish` creates the file, or replaces it; until then the text is in an unnamed file in the same folder.
    """

    def __init__(self, path: str | Path, scale: Scale) -> None:
        """Starts a page.

        Args:
            path: the file to write in the end.
            scale: the colors.

        Raises:
            UserError: the folder does not exist, or `path` exists and is not a regular file.
            OSError: the folder is not writable. Every OSError of this class names `path`.
        """
        # Replace the target of a symbolic link, not the link.
        self._given, self._path, self._scale = Path(path), Path(path).resolve(), scale
        if not self._path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {self._path.parent}; create it first")
        if self._path.exists() and not self._path.is_file():
            kind = "folder" if self._path.is_dir() else "pipe or device"
            raise UserError(f"{path} is a {kind}; name a file to write the page to")
        with naming(self._given):
            self._body = tempfile.TemporaryFile("w+b", dir=self._path.parent)  # noqa: SIM115 -- __exit__ closes it
        self._run: list[str] = []
        self._key = "", ""

    def paint(self, characters: Iterable[Painted]) -> None:
        """Appends text, consumed as it comes."""
        for text, value, tip in characters:
            level = self._scale.level(value)
            color = "" if level == self._scale.neutral else class_of(level)
            for character in text:
                mark = _mark(character, colored=bool(color))
                # Neighbors with the same color and tooltip share an element.
                key = (f"{color} {mark}".strip(), tip)
                if key != self._key or mark or len(self._run) == _LONGEST_RUN:
                    self._end_run()
                    self._key = key
                self._run.append(name_character(character) if mark == "X" else character)

    def heading(self, text: str) -> None:
        """Starts another text with a heading, below the previous one."""
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
        note: str = "",
        excerpts: ExcerptTable | None = None,
    ) -> None:
        """Puts the page together and moves it into place.

        Args:
            title: heading of the page.
            facts: names and values, in a table above the text.
            note: paragraph between the facts and the text.
            excerpts: parts of the text, in a separate table.
        """
        self._end_run()
        before, after = page_around_text(title, facts, note, self._scale, excerpts)
        with naming(self._given), replacing(self._path) as file:
            self._body.seek(0)
            file.write(before.encode())
            shutil.copyfileobj(self._body, file)
            file.write(after.encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # On a full disk the rest of an unfinished text cannot be written, which does not matter any more.
        with contextlib.suppress(OSError):
            self._body.close()

    def _end_run(self) -> None:
        names, tip = self._key
        if self._run:
            attributes = (f' class="{names}"' if names else "") + (f' title="{escape(tip)}"' if tip else "")
            text = html.escape("".join(self._run), quote=False)
            self._write(f"<b{attributes}>{text}</b>" if attributes else text)
            self._run = []

    def _write(self, text: str) -> None:
        with naming(self._given):
            self._body.write(text.encode())


def _mark(character: str, *, colored: bool) -> str:
    """Returns the CSS class of an invisible character: X replaces it by its name, N, T and Z add a symbol."""
    if character.isprintable() or character == " ":
        return ""
    if character in "\n\t":
        return {"\n": "N", "\t": "T"}[character] if colored else ""
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDI_CONTROLS
    return "X" if hidden else "Z"
