"""Process-wide settings for the command line: quiet libraries and a persistent compilation cache; imports jax."""

import errno
import hashlib
import logging
import os
import platform
import signal
import sys
import warnings

import absl.logging
import jax

from charjax.cli.startup import exit_at_once
from charjax.host.cpu import cpu_flags
from charjax.host.memory import save_address_space

_log = logging.getLogger("charjax")


def set_up() -> None:
    """Applies all settings."""
    save_address_space()
    sys.unraisablehook = _show_unraisable
    _quieten_orbax()
    _keep_compiled_programs()


def _quieten_orbax() -> None:
    """Hides Orbax's messages about failed saves, which charjax reports itself."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    # When one write in a save fails, Orbax drops the writes that have not started and does not await those that end.
    warnings.filterwarnings("ignore", "coroutine .*serialize.* was never awaited", RuntimeWarning)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows an exception that Python drops, except for a known one, and ends the process for a KeyboardInterrupt.

    It is dropped if the signal arrives during a garbage collection, where JAX has a callback.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        exit_at_once(signal.SIGINT)
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, in the user's cache folder, unless the user has configured it."""
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    # JAX would warn, in the middle of the output, about programs that cannot be written or were truncated by a kill.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    folder = chosen or _default_cache()
    if not chosen:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if obstacle := _obstacle(folder):
        variable = "JAX_COMPILATION_CACHE_DIR" if chosen else "XDG_CACHE_HOME"
        advice = f"set {variable} to another folder"
        _log.warning("compiled programs cannot be cached (%s), so every command recompiles them; %s", obstacle, advice)


def _default_cache() -> str | None:
    """Returns the user's cache folder for compiled programs; None for users without a home folder.

    Programs compiled for one kind of CPU might not run on another, so each kind has its own folder.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if caches.startswith("~"):
        return None
    features = " ".join(sorted(cpu_flags())) or platform.processor()
    return os.path.join(caches, "charjax", hashlib.sha256(features.encode()).hexdigest()[:12])


def _obstacle(folder: str | None) -> str | None:
    """Returns the reason why programs cannot be written to a folder, if any; the folder is created if needed."""
    if folder is None:
        return "no home folder"
    if "://" in folder:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: {os.strerror(errno.EACCES)}"
