"""A seal says that a folder is complete and, by the digest of each of its files, what it must hold."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SEAL = "charjax_seal.json"
# Bytes; a seal takes about a hundred for each file.
LARGEST_SEAL = 10_000_000


class BrokenSealError(Exception):
    """A folder that is not complete or no longer holds what was sealed; the message says where."""


def seal(folder: Path) -> None:
    """Seals a folder as it is: from now on any change to its files is noticed."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SEAL]
    files = {str(path.relative_to(folder)): _digest(path) for path in found}
    new = folder / f"{SEAL}.new"
    new.write_text(json.dumps(files, indent=1))
    new.replace(folder / SEAL)


def check_seal(folder: Path) -> None:
    """Checks the files of a folder against its seal; nothing is read that lies elsewhere, or is no file.

    Raises:
        BrokenSealError: there is no seal, or a file is missing, cannot be read or has changed, or there is a link or
            something else than files and folders.
    """
    for path in _without_links(folder):
        if not path.is_file() and not path.is_dir():
            raise BrokenSealError(f"{path.relative_to(folder)} is neither a file nor a folder")
    for name, digest in _read_seal(folder).items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise BrokenSealError(f"{SEAL} names files elsewhere")
        try:
            found = _digest(folder / name)
        except FileNotFoundError as error:
            raise BrokenSealError(f"{name} is missing") from error
        except OSError as error:
            raise BrokenSealError(f"{name}: {error.strerror}") from error
        if found != digest:
            raise BrokenSealError(f"{name} is damaged")


def _without_links(folder: Path) -> Iterator[Path]:
    """What is in a folder and below it.

    Raises:
        BrokenSealError: a symbolic link, which may lead elsewhere.
    """
    if folder.is_symlink():
        raise BrokenSealError("it is a symbolic link")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise BrokenSealError(f"{path.relative_to(folder)} is a symbolic link")
        yield path


def _read_seal(folder: Path) -> dict[str, str]:
    path = folder / SEAL
    try:
        if path.stat().st_size > LARGEST_SEAL:
            raise BrokenSealError(f"{SEAL} is damaged")
        files = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BrokenSealError("it was not completed") from error
    except OSError as error:
        raise BrokenSealError(f"{SEAL}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BrokenSealError(f"{SEAL} is damaged") from error
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise BrokenSealError(f"{SEAL} is damaged")
    return files


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
