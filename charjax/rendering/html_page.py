"""One page of HTML that paints a text, each character in the colour of a number.

The page is a file by itself: it asks nothing of a network, and its policy (CSP) lets it run no script but its own, by
its digest. It can be read without that, too: the script shows at once what a browser by itself shows late. All text is
escaped; what would reorder or hide text, or what HTML cannot hold, is shown by its name in a frame.
"""

import html
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from charjax.errors import UserError
from charjax.rendering.color_scale import Scale
from charjax.rendering.html_template import TAIL, Places, class_of, escape, head
from charjax.rendering.visible_text import BIDI_CONTROLS, name_character

_LONGEST_RUN = 4096


class Painted(NamedTuple):
    """A character and what is known of it.

    Attributes:
        text: the character, or several that share all else.
        value: the number that it is painted by; NaN leaves it unpainted.
        tip: what is shown when it is pointed at, of several lines if need be; empty for nothing.
    """

    text: str
    value: float
    tip: str = ""


def write_page(
    path: str | Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    characters: Iterable[Painted],
    scale: Scale,
    note: str = "",
) -> None:
    """Writes a page in one go; see `PageWriter` for one whose facts are known last.

    Args:
        path: the file; one that is there is replaced when the new one is complete.
        title: heading.
        facts: names and values, in a table above the text.
        characters: the text, taken as it comes and never held as a whole.
        scale: the colours.
        note: a sentence between the facts and the text.

    Raises:
        UserError: a folder that does not exist, or something else than a file in the file's place.
    """
    with PageWriter(path, scale) as page:
        page.paint(characters)
        page.finish(title=title, facts=facts, note=note)


class PageWriter:
    """Takes a text as it comes, then what stands above it; a context manager, which leaves nothing without `finish`."""

    def __init__(self, path: str | Path, scale: Scale) -> None:
        """Begins a page, in a file without a name.

        Args:
            path: the file to write in the end.
            scale: the colours.

        Raises:
            UserError: a folder that does not exist, or something else than a file in the file's place.
            OSError: the folder cannot be written in.
        """
        # The file that a symbolic link stands for is replaced, not the link.
        self._path, self._scale = Path(path).resolve(), scale
        if not self._path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {self._path.parent}; make it first")
        if self._path.exists() and not self._path.is_file():
            kind = "folder" if self._path.is_dir() else "pipe or device"
            raise UserError(f"{path} is a {kind}; name a file to write the page to")
        self._body = tempfile.TemporaryFile("w+b", dir=self._path.parent)  # noqa: SIM115 -- __exit__ closes it
        self._run: list[str] = []
        self._key = "", ""

    def paint(self, characters: Iterable[Painted]) -> None:
        """Goes on with the text."""
        for text, value, tip in characters:
            level = self._scale.level(value)
            colour = "" if level == self._scale.neutral else class_of(level)
            for character in text:
                mark = _mark(character, painted=bool(colour))
                # Neighbours that differ in nothing share an element.
                key = (f"{colour} {mark}".strip(), tip)
                if key != self._key or mark or len(self._run) == _LONGEST_RUN:
                    self._end_run()
                    self._key = key
                self._run.append(name_character(character) if mark == "X" else character)

    def heading(self, text: str) -> None:
        """Begins another text, below the one before."""
        self._end_run()
        self._body.write(f"<h2>{escape(text)}</h2>".encode())

    def line(self, number: int) -> None:
        """Begins a line: its number stands beside it, and places can point to it."""
        self._end_run()
        self._body.write(f'<i id="{number}"></i>'.encode())

    def finish(
        self,
        *,
        title: str,
        facts: Sequence[tuple[str, str]],
        note: str = "",
        places: Places | None = None,
    ) -> None:
        """Puts the page together and in its place.

        Args:
            title: heading.
            facts: names and values, in a table above the text.
            note: a sentence between the facts and the text.
            places: places in the text, in a table of their own.
        """
        self._end_run()
        self._body.seek(0)
        with tempfile.NamedTemporaryFile("wb", dir=self._path.parent, prefix=".charjax-", delete=False) as file:
            try:
                file.write(head(title, facts, note, self._scale, places).encode())
                shutil.copyfileobj(self._body, file)
                file.write(TAIL.encode())
                file.flush()
                os.fsync(file.fileno())
                # Temporary files are closed to others; this one becomes what any new file is, or what it replaces was.
                os.chmod(file.name, self._path.stat().st_mode & 0o777 if self._path.exists() else 0o666 & ~_umask())
                os.replace(file.name, self._path)
            except BaseException:
                os.unlink(file.name)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._body.close()

    def _end_run(self) -> None:
        names, tip = self._key
        if self._run:
            attributes = (f' class="{names}"' if names else "") + (f' title="{escape(tip)}"' if tip else "")
            text = html.escape("".join(self._run), quote=False)
            self._body.write((f"<b{attributes}>{text}</b>" if attributes else text).encode())
            self._run = []


def _mark(character: str, *, painted: bool) -> str:
    """The class of a character that cannot be seen as it is: X shows its name, the others add to it."""
    if character.isprintable() or character == " ":
        return ""
    if character in "\n\t":
        return {"\n": "N", "\t": "T"}[character] if painted else ""
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDI_CONTROLS
    return "X" if hidden else "Z"


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
