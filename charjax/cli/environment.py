"""What all commands do before anything else."""

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

import absl.logging
import jax

# Orbax tells through absl of what charjax tells in its own words.
absl.logging.set_verbosity(absl.logging.FATAL)


# Where one write of a save fails, Orbax gives up: those not begun are dropped, and those that end find nobody to tell.
warnings.filterwarnings("ignore", "coroutine .*serialize.* was never awaited", RuntimeWarning)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


sys.unraisablehook = _show_unraisable


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder, unless the user has set it up."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs compiled for one processor do not run on every other: each kind gets a folder of its own.
        kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(caches / "charjax" / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        # A process that was killed while it wrote a program leaves half a file, which JAX passes over with a warning.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")


def _processor() -> str:
    """What this processor can do, or its name where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
