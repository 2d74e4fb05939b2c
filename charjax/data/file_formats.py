"""Reads text from compressed files and JSON Lines files, which are recognized by their file extensions."""

import bz2
import contextlib
import gzip
import importlib
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charjax.errors import UserError

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ZSTD = ".zst"
# Number of compressed bytes read at a time, small because zstd expands some text ten-thousand-fold.
_ZSTD_BYTES = 1 << 14


def is_compressed(path: Path) -> bool:
    """Returns True for a file that `contents` decompresses."""
    return path.suffix in (*_OPENERS, _ZSTD)


def is_json_lines(path: Path) -> bool:
    """Returns True for a file, compressed or not, that `json_lines` reads."""
    return (path.with_suffix("") if is_compressed(path) else path).suffix == ".jsonl"


def contents(path: Path, size: int) -> Iterator[bytes]:
    """Yields the decompressed content of a file in chunks of about `size` bytes.

    Raises:
        UserError: the file is damaged, or the package to decompress it is not installed.
        OSError: the file cannot be read.
    """
    if path.suffix == _ZSTD:
        yield from _zstd_contents(path)
        return
    with _reporting_damage(path), _OPENERS.get(path.suffix, open)(path, "rb") as file:
        while chunk := file.read(size):
            yield chunk


def _zstd_contents(path: Path) -> Iterator[bytes]:
    try:
        zstandard = importlib.import_module("zstandard")
    except ModuleNotFoundError:
        raise UserError(f"reading {path} needs zstandard; install it with pip install 'charjax[zstd]'") from None
    # `stream_reader` would mistake a truncated file for a complete one.
    decompressor, frame = zstandard.ZstdDecompressor(max_window_size=2**31), None
    with _reporting_damage(path, zstandard.ZstdError), path.open("rb") as file:
        while data := file.read(_ZSTD_BYTES):
            while data:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("it is truncated")


@contextlib.contextmanager
def _reporting_damage(path: Path, *kinds: Any) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, *kinds) as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)
            raise
        raise UserError(f"{path} is damaged, or not {path.suffix[1:]} ({error}); create it again") from error


def gap(before: bytes, separator: bytes | None) -> bytes:
    """Returns what to insert after `before`: `separator` or, if that is None, a line break unless it ends with one."""
    if separator is not None:
        return separator
    return b"" if before.endswith(b"\n") else b"\n"


def json_lines(path: Path, separator: bytes | None, size: int) -> Iterator[tuple[int, bytes]]:
    """Yields the number and text of each non-empty line of a JSON Lines file, with separators between the texts.

    Raises:
        UserError: a line is not an object with a string "text"; blank lines are skipped.
    """
    before = b""
    for number, line in enumerate(_lines(contents(path, size)), start=1):
        text = _text_of(line, f"{path} line {number}") if line.strip() else b""
        if text:
            yield number, gap(before, separator) + text if before else text
            before = text


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    yield rest


def _text_of(line: bytes, where: str) -> bytes:
    try:
        record = json.loads(line)
        text = record.get("text") if isinstance(record, dict) else None
        if isinstance(text, str):
            return text.encode()
        wrong = 'is not an object with a string "text"'
    except json.JSONDecodeError as error:
        wrong = f"is not valid JSON ({error.msg}, column {error.colno})"
    except UnicodeEncodeError:
        wrong = "contains half a surrogate pair"
    except (UnicodeDecodeError, RecursionError) as error:
        wrong = f"is not valid JSON ({error})"
    raise UserError(f"{where} {wrong}; correct or remove it")
