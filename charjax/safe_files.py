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
