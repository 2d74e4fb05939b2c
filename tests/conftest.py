"""Strict settings for every test: 8 CPU devices, rank promotion an error, compiled programs cached between runs."""

import gc
import getpass
import logging
import os
import signal
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before jax is imported for the first time, here or in a child process.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# One cache for all workers and their child processes. With a maximum size JAX locks it (by filelock); without one, a
# process can read a file that another has written half of.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"charjax-tests-{getpass.getuser()}")
)
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 * 2**30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

# Tests send it, also where they run in the background of a shell.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("charjax", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("charjax")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_go_with_their_module():
    """A process keeps every program that it compiled, several gigabytes of them after all modules."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """The command line sets its log up for good: here it must not last."""
    logger = logging.getLogger("charjax")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
