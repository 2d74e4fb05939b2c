"""Creates a folder atomically: it is written next to its destination and moved there when complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from charjax.errors import UserError, checked_path, remedy_for
from charjax.runs.layout import MODEL


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yields an empty folder for the block to fill, and moves it or, if `out` exists, its files to `out` afterwards.

    After an error, nothing is left behind; if the process is killed, `.NAME.PID.new` may remain in `out` or next to it.

    Raises:
        UserError: `out` is not empty or cannot be written.
    """
    path = Path(os.path.realpath(checked_path("out", out)))
    if path.exists() and not path.is_dir():
        raise UserError(f"{out} is a file; choose a folder for --out")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{out} already exists and is not empty; choose another --out")
    # A process may be in the folder that exists, so it must not be replaced.
    folder = (path / path.name if path.exists() else path).with_name(f".{path.name}.{os.getpid()}.new")
    missing = [parent for parent in path.parents if not parent.exists()]  # innermost first
    try:
        with writing(out):
            folder.mkdir(parents=True)
        yield folder
        with writing(out):
            _move(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # not created, or in use
                parent.rmdir()


def _move(folder: Path, path: Path) -> None:
    if folder.parent != path:
        folder.replace(path)
        return
    if list(path.iterdir()) != [folder]:
        raise UserError(f"{path} was changed by another process at the same time; choose another --out")
    for file in sorted(folder.iterdir(), key=lambda file: file.name == MODEL):  # which makes it a model
        file.rename(path / file.name)


@contextlib.contextmanager
def writing(out: str | Path) -> Iterator[None]:
    """Turns OS errors into a UserError with a one-line message that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = remedy_for(error) or "choose another --out"
        raise UserError(f"{out} cannot be written ({error.strerror or error}); nothing was kept; {remedy}") from error
