"""Replaces files atomically: readers see either the old content or the new, never a part of it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes OS errors name `path`, since users know nothing about the temporary file behind it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def make_folder_of(path: Path) -> None:
    """Creates the folder of a file, and its parents, if they do not exist; an OSError names `path`."""
    with naming(path):
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing_output(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that a user asked for as `replacing` does, but creates its folder; any OSError names `path`."""
    make_folder_of(path)
    with naming(path), replacing(path) as file:
        yield file


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file next to `path`, and moves it to `path` once the block has finished.

    The permissions of `path` are kept. After an error `path` is unchanged and the temporary file is gone; after a kill
    `.NAME.PID.new` may be left. A symbolic link at either path is replaced, not followed.

    Raises:
        OSError: the file cannot be written; the error's filename is `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
