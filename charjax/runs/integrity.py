"""A seal says that a folder is complete and, by the digest of each of its files, what it must hold."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from charjax.errors import UserError
from charjax.runs.safe_files import open_file, read_json

SEAL = "charjax_seal.json"
# What is looked at before it is given up: files and folders, and folders within each other.
MOST_ENTRIES, MOST_LEVELS = 1_000_000, 16
# No seal names other files: neither of other folders nor of none.
_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class BrokenSealError(Exception):
    """A folder that is not complete or no longer holds what was sealed; the message says where."""


def seal(folder: Path) -> None:
    """Seals a folder as it is: from now on any change to its files is noticed."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SEAL]
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in found}
    new = folder / f"{SEAL}.new"
    new.write_text(json.dumps(files, indent=1))
    new.replace(folder / SEAL)


def check_seal(folder: Path) -> None:
    """Checks the files of a folder against its seal; nothing is read that lies elsewhere, or is no file.

    Raises:
        BrokenSealError: there is no seal, or a file is missing, cannot be read or has changed, or there is a link or
            something else than files and folders.
    """
    measure(folder)
    digests = read_seal(folder)
    check_digests(folder, digests, digests)


def measure(folder: Path) -> int:
    """Bytes of all files in a folder and below it.

    Raises:
        BrokenSealError: there is a link or something else than files and folders, or more than any checkpoint has.
    """
    if folder.is_symlink():
        raise BrokenSealError("it is a symbolic link")
    size = entries = 0
    pending = [(folder, 0)]
    while pending:
        inside, level = pending.pop()
        try:
            with os.scandir(inside) as found:
                for entry in found:
                    status = entry.stat(follow_symlinks=False)
                    entries += 1
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((Path(entry.path), level + 1))
                    elif stat.S_ISREG(status.st_mode):
                        size += status.st_size
                    else:
                        kind = "a symbolic link" if entry.is_symlink() else "neither a file nor a folder"
                        raise BrokenSealError(f"{_shown(folder, entry.path)} is {kind}")
                    if entries > MOST_ENTRIES or level > MOST_LEVELS:
                        raise BrokenSealError("it holds more files and folders than a checkpoint has")
        except OSError as error:
            where = "" if inside == folder else f"{_shown(folder, inside)}: "
            raise BrokenSealError(f"{where}{error.strerror}") from error
    return size


def read_seal(folder: Path) -> dict[str, str]:
    """The digest of each file by its name, as the seal has them.

    Raises:
        BrokenSealError: there is none, or it is damaged.
    """
    try:
        files = read_json(folder / SEAL)
    except FileNotFoundError as error:
        raise BrokenSealError("it was not completed") from error
    except OSError as error:
        raise BrokenSealError(f"{SEAL}: {error.strerror}") from error
    except UserError as error:
        raise BrokenSealError(f"{SEAL} is damaged") from error
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise BrokenSealError(f"{SEAL} is damaged")
    if not all(_NAME.fullmatch(name) and ".." not in name.split("/") for name in files):
        raise BrokenSealError(f"{SEAL} names files elsewhere")
    return files


def check_digests(folder: Path, digests: dict[str, str], names: Iterable[str]) -> None:
    """Checks some files of a folder.

    Args:
        folder: the folder, after `measure`.
        digests: those of its seal.
        names: which files.

    Raises:
        BrokenSealError: one of them is missing, cannot be read, has changed or is not in the seal.
    """
    for name in names:
        try:
            found = _digest(folder / name)
        except FileNotFoundError as error:
            raise BrokenSealError(f"{name} is missing") from error
        except OSError as error:
            raise BrokenSealError(f"{name}: {error.strerror}") from error
        except UserError as error:
            raise BrokenSealError(f"{name} is no file") from error
        if found != digests.get(name):
            raise BrokenSealError(f"{name} is damaged")


def _shown(folder: Path, path: str | Path) -> str:
    name = str(Path(path).relative_to(folder))
    return name if name.isprintable() else ascii(name)


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
