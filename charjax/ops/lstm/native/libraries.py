"""The compiled forms of the kernel: one shared library per instruction set; the best supported one is used."""

import ctypes
import functools
import logging
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from charjax.errors import in_short
from charjax.host.cpu import cpu_flags

# Instruction sets, best first, with the CPU flags they require; only the first supports training in bfloat16.
_WIDE = {"avx512vl", "avx512bw", "avx512dq"}
INSTRUCTION_SETS = {
    "avx512bf16": {*_WIDE, "avx512_bf16", "avx512_vnni"},
    "avx512": _WIDE,
    "avx2": {"avx2", "fma"},
    "generic": set(),
}
STEP_DTYPES = ("float32", "bfloat16", "int8")

_log = logging.getLogger("charjax")


class Library(NamedTuple):
    """A compiled form of the kernel that this CPU can run.

    Attributes:
        instructions: one of INSTRUCTION_SETS.
        panel: units per vector; arrays saved for the backward pass are padded to a multiple of it.
        bytes_at_once: the number of int8 weights of a column that one instruction processes.
        dtypes: operand formats for training; generation supports all STEP_DTYPES as weight formats.
    """

    instructions: str
    panel: int
    bytes_at_once: int
    dtypes: tuple[str, ...]

    def target(self, direction: str, dtype: str) -> str:
        """Returns the name of a custom call."""
        return f"charjax_lstm_{direction}_{dtype}_{self.instructions}"


@functools.cache
def libraries() -> tuple[Library, ...]:
    """Returns the installed forms of the kernel that this CPU supports, best first, and registers their custom calls.

    If a form cannot be loaded, it is left out, and a warning says why.
    """
    folder = Path(__file__).parent
    paths = {name: folder / f"_{name}.so" for name in INSTRUCTION_SETS}
    found = [_load(name, path) for name, path in paths.items() if path.exists()]
    return tuple(library for library in found if library is not None)


def _load(instructions: str, path: Path) -> Library | None:
    try:
        kernel = ctypes.CDLL(str(path))
        if not kernel.charjax_lstm_supported():
            return None
        # JAX checks the versions later, when it starts the CPU backend, which would then fail entirely.
        if kernel.charjax_ffi_version() > _ffi_version():
            raise OSError(f"it was built for a newer version of jax than {jax.__version__}")
        return _register(instructions, kernel)
    except (OSError, AttributeError) as error:  # from the linker and from ctypes, respectively
        _log.warning("the LSTM kernel %s cannot be used: %s; reinstall charjax", path.name, in_short(str(error)))
        return None


def _ffi_version() -> int:
    """Returns the version of XLA's custom-call interface, encoded like the kernel's `charjax_ffi_version`."""
    header = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    major, minor = re.findall(r"^#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)", header, re.MULTILINE)
    return 1000 * int(major) + int(minor)


def _register(instructions: str, kernel: ctypes.CDLL) -> Library:
    """Registers the custom calls of a compiled kernel with JAX."""
    dtypes = ("float32", "bfloat16") if instructions == "avx512bf16" else ("float32",)
    library = Library(instructions, kernel.charjax_lstm_panel(), kernel.charjax_lstm_bytes_at_once(), dtypes)
    calls = [(direction, dtype) for direction in ("forward", "backward") for dtype in dtypes]
    for direction, dtype in [*calls, *(("generate", dtype) for dtype in STEP_DTYPES)]:
        call = jax.ffi.pycapsule(getattr(kernel, f"charjax_lstm_{direction}_{dtype}"))
        jax.ffi.register_ffi_target(library.target(direction, dtype), call, platform="cpu")
    return library


def library_for(dtype: str) -> Library | None:
    """Returns the best form of the kernel that supports training in a dtype, or None if there is no such form."""
    return next((library for library in libraries() if dtype in library.dtypes), None)


def better_form() -> str | None:
    """Returns the best form of the kernel that this CPU can run if that form is not installed, otherwise None.

    On Windows, the kernel is not built. On systems that do not list CPU flags, the generic form is assumed to be best.
    """
    flags = cpu_flags()
    best = next(name for name, needed in INSTRUCTION_SETS.items() if needed <= flags)
    installed = [library.instructions for library in libraries()]
    ranks = list(INSTRUCTION_SETS)
    missing = not installed or ranks.index(best) < ranks.index(installed[0])
    return best if missing and sys.platform != "win32" else None
