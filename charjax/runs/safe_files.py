"""Opens and reads files in untrusted folders: only regular files, no links, limited sizes."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from charjax.errors import UserError

# Maximum size of a JSON file in bytes; once parsed, it can occupy twenty times as much memory. The largest vocabulary
# file is 13 MB.
LARGEST_JSON = 1 << 24


def open_file(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading.

    Raises:
        UserError: the path is a symbolic link, a folder, a pipe (which would block) or a device (which may never end).
        OSError: the file cannot be opened.
    """
    return os.fdopen(_open_regular(path, os.O_RDONLY, "put the file itself there"), "rb")


def open_for_writing(path: Path, flags: int) -> int:
    """Opens a regular file with `os.open`, passing on flags such as O_CREAT.

    Returns:
        The file descriptor.

    Raises:
        UserError: the path is a symbolic link, which may lead to any file, or not a regular file.
        OSError: the file cannot be opened.
    """
    return _open_regular(path, flags, "remove it, or choose another --out")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is not regular, is larger than `LARGEST_JSON` or is not valid JSON.
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_JSON:
            raise UserError(f"{path} is larger than {LARGEST_JSON:,} bytes")
        # Reading up to `LARGEST_JSON` bytes would allocate that much for any file.
        return parse_json(file.read(size), path)


def parse_json(content: bytes | str, name: object) -> Any:
    """Parses untrusted JSON, which error messages call `name`.

    Raises:
        UserError: the content is not valid JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON") from error


def _open_regular(path: Path, flags: int, advice: str) -> int:
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not all systems have all three
        flags |= getattr(os, name, 0)
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link; {advice}") from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path} is not a regular file; {advice}")
    return file
