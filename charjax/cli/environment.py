"""Process-wide settings of the command line: quiet libraries and a persistent compilation cache; imports jax."""

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

import absl.logging
import jax

from charjax.host.cpu import cpu_flags
from charjax.host.memory import save_address_space


def set_up() -> None:
    """Applies all settings."""
    save_address_space()
    _quieten_orbax()
    _keep_compiled_programs()


def _quieten_orbax() -> None:
    """Hides Orbax's messages about failed saves, which charjax reports itself."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    # When one write of a save fails, Orbax drops the writes that have not begun, and does not await those that end.
    warnings.filterwarnings("ignore", "coroutine .*serialize.* was never awaited", RuntimeWarning)
    sys.unraisablehook = _show_unraisable


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, in the user's cache folder, unless the user has configured it."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs compiled for one kind of CPU may not run on another, so each kind has its own folder.
        features = " ".join(sorted(cpu_flags())) or platform.processor()
        kind = hashlib.sha256(features.encode()).hexdigest()[:12]
        jax.config.update("jax_compilation_cache_dir", str(caches / "charjax" / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        # A process killed while it writes a program leaves a truncated file, which JAX skips with a warning.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
