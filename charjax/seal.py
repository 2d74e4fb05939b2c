"""A seal says that a folder is complete and, by the digest of each of its files, what it must hold."""

import hashlib
import json
from pathlib import Path

SEAL = "charjax_seal.json"


class BrokenSealError(Exception):
    """A folder that is not complete or no longer holds what was sealed; the message says where."""


def seal(folder: Path) -> None:
    """Seals a folder as it is: from now on any change to its files is noticed."""
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    new = folder / f"{SEAL}.new"
    new.write_text(json.dumps(files, indent=1))
    new.replace(folder / SEAL)


def check_seal(folder: Path) -> None:
    """Checks the files of a folder against its seal.

    Raises:
        BrokenSealError: there is no seal, or a file is missing, cannot be read or has changed.
    """
    try:
        expected = dict(json.loads((folder / SEAL).read_bytes()))
    except FileNotFoundError as error:
        raise BrokenSealError("it was not completed") from error
    except OSError as error:
        raise BrokenSealError(f"{SEAL}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise BrokenSealError(f"{SEAL} is damaged") from error
    for name, digest in expected.items():
        try:
            found = _digest(folder / name)
        except FileNotFoundError as error:
            raise BrokenSealError(f"{name} is missing") from error
        except OSError as error:
            raise BrokenSealError(f"{name}: {error.strerror}") from error
        if found != digest:
            raise BrokenSealError(f"{name} is damaged")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
