"""Writes, reads and truncates metrics.jsonl and samples.txt, entry by entry."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from charjax.errors import UserError
from charjax.metrics import Evaluation
from charjax.runs.safe_files import open_file, open_for_writing

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 32  # bytes
_HEADING = re.compile(
    r"^=== (step \d+, epoch [\d.]+, validation loss [\d.a-z]+ nats per character) ===\n", re.MULTILINE
)
_LONGEST_EVALUATION = 100_000  # bytes; evaluations are a few hundred bytes long


class AppendLog:
    """Context manager for a UTF-8 file open for appending, flushed after every entry; lone surrogates are escaped.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path, *, size: int | None = None) -> None:
        """Opens or creates the file, and drops its last line if that was cut off by a crash.

        Args:
            path: the file; its folder must exist.
            size: length in bytes to truncate the file to; None keeps all of it.

        Raises:
            UserError: the path is a symbolic link or not a regular file, or the file has no line breaks.
            OSError: the file cannot be opened for writing.
        """
        self.path = Path(path)
        self._file = os.fdopen(open_for_writing(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b")
        try:
            if size is not None and size < self.size:
                self._file.truncate(size)
            self._drop_cut_line()
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self._file.seek(0, os.SEEK_END)

    def write(self, entry: str) -> None:
        """Writes an entry, which must end with a newline, and flushes it."""
        self._file.write(entry.encode("utf-8", errors="backslashreplace"))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _drop_cut_line(self) -> None:
        end = size = self.size
        while end > 0:
            # Search from the end in chunks, because the file may be larger than memory.
            start = max(0, end - _CHUNK)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                self._file.truncate(start + found + 1)
                return
            if size - start > _LONGEST_LINE:
                raise UserError(f"{self.path} has no line breaks; remove it, or choose another --out")
            end = start
        self._file.truncate(0)


class MetricsLog(AppendLog):
    """Context manager for metrics.jsonl, open for appending."""

    def append(self, evaluation: Evaluation) -> None:
        """Writes an evaluation as one line and flushes it."""
        self.write(evaluation.to_json() + "\n")


def read_metrics(path: str | Path) -> list[Evaluation]:
    """Reads a metrics.jsonl file, ignoring its last line if that is still being written.

    Raises:
        UserError: the file cannot be read, or a line is not an evaluation.
    """
    try:
        with open_file(Path(path)) as file:
            return list(_read_lines(file, path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _read_lines(file: BinaryIO, path: str | Path) -> Iterator[Evaluation]:
    number = 0
    while line := file.readline(_LONGEST_EVALUATION):
        number += 1
        if not line.endswith(b"\n") and len(line) < _LONGEST_EVALUATION:
            return  # still being written
        try:
            yield Evaluation.from_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not an evaluation ({error}); remove the line") from error


def read_samples(path: str | Path) -> list[tuple[str, str]]:
    """Reads the (heading, text) of each sample in a samples.txt file; returns [] if there is no such file.

    A sample that itself contains lines that look like headings is split at them.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_file(Path(path)) as file:
            content = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    parts = _HEADING.split(content)[1:]
    return [(heading, text.removesuffix("\n\n")) for heading, text in zip(parts[::2], parts[1::2], strict=True)]


class SamplesLog(AppendLog):
    """Context manager for samples.txt, open for appending."""

    def append(self, evaluation: Evaluation, text: str) -> None:
        """Writes a heading with step, epoch and validation loss, then the text and an empty line, and flushes."""
        heading = (
            f"=== step {evaluation.step}, epoch {evaluation.epoch:.2f}, "
            f"validation loss {evaluation.val_loss:.4f} nats per character ==="
        )
        self.write(f"{heading}\n{text}\n\n")
