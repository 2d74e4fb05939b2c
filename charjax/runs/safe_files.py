"""Reading files that may come from anyone: files alone, no more of them than was asked for, and JSON of any kind."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from charjax.errors import UserError

# Bytes of JSON, which can take twenty times that as objects. The largest vocabulary takes 13 MB.
LARGEST_JSON = 1 << 24


def open_file(path: Path) -> io.BufferedReader:
    """Opens a file for reading; a pipe would be waited for, and a device may never end.

    Raises:
        UserError: it is no file.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no file")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path, *, largest: int = LARGEST_JSON) -> Any:
    """Reads a file of JSON.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        UserError: it is no file, too large or no JSON.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(f"{path} is larger than {largest:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON") from error


def open_here(path: Path, flags: int) -> int:
    """Opens a file for writing, as `os.open` does, where it is one: a folder from someone else may hold other things.

    Raises:
        UserError: it is a symbolic link, which may lead to any file, or a pipe or device.
        OSError: it cannot be opened.
    """
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # of which each system has some
        flags |= getattr(os, name, 0)
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link: remove it, or choose another --out") from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path} is no file: remove it, or choose another --out")
    return file
