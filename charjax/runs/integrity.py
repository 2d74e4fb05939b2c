"""Stores SHA-256 digests of the files in a folder, in a file written last; without it, the folder is incomplete."""

import hashlib
import json
from pathlib import Path

from charjax.errors import UserError, is_limit
from charjax.host.atomic_file import replacing
from charjax.runs.safe_files import open_file, read_json

DIGESTS = "charjax_seal.json"


class DamagedError(Exception):
    """Raised when a folder is incomplete or has changed since its digests were written; the message says where."""


def write_digests(folder: Path) -> None:
    """Writes digests of the files in a folder, which marks it as complete and makes later changes detectable."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / DIGESTS]
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in found}
    with replacing(folder / DIGESTS) as file:
        file.write(json.dumps(digests, indent=1).encode())


def check_digests(folder: Path) -> None:
    """Checks every file in a folder against its digest.

    Raises:
        DamagedError: the folder has no digests, or a file is missing, has changed or cannot be read.
        OSError: a process or system limit prevents reading, so the state of the folder is unknown.
    """
    for name, expected in _read_digests(folder).items():
        try:
            found = _digest(folder / name)
        except FileNotFoundError as error:
            raise DamagedError(f"{name} is missing") from error
        except OSError as error:
            if is_limit(error):
                raise
            raise DamagedError(f"{name}: {error.strerror}") from error
        except (UserError, ValueError) as error:  # ValueError: a name with a null byte
            raise DamagedError(f"{name} is not a regular file") from error
        if found != expected:
            raise DamagedError(f"{name} is damaged")


def _read_digests(folder: Path) -> dict[str, str]:
    try:
        digests = read_json(folder / DIGESTS)
    except FileNotFoundError as error:
        raise DamagedError("it is incomplete") from error
    except OSError as error:
        if is_limit(error):
            raise
        raise DamagedError(f"{DIGESTS}: {error.strerror}") from error
    except UserError as error:
        raise DamagedError(f"{DIGESTS} is damaged") from error
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise DamagedError(f"{DIGESTS} is damaged")
    return digests


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
