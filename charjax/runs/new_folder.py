"""Creates a folder atomically: it is written next to its destination and moved there when complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from charjax.errors import UserError, checked_path, remedy_for


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yields an empty folder for the block to fill, and moves it to `out` afterwards.

    After an error, nothing is left behind; if the process is killed, `.NAME.PID.new` may remain next to `out`.

    Raises:
        UserError: `out` is not empty or cannot be written.
    """
    path = Path(os.path.realpath(checked_path("out", out)))
    if path.exists() and not path.is_dir():
        raise UserError(f"{out} is a file; choose a folder for --out")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{out} already exists; choose another --out")
    folder = path.with_name(f".{path.name}.{os.getpid()}.new")
    missing = [parent for parent in path.parents if not parent.exists()]  # innermost first
    try:
        with writing(out):
            folder.mkdir(parents=True)
        yield folder
        with writing(out):
            folder.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # not created, or in use
                parent.rmdir()


@contextlib.contextmanager
def writing(out: str | Path) -> Iterator[None]:
    """Turns OS errors into a UserError with a one-line message that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = remedy_for(error) or "choose another --out"
        raise UserError(f"{out} cannot be written ({error.strerror or error}); nothing was kept; {remedy}") from error
