"""Settings shared by all tests: two CPU devices, one compilation cache, strict JAX, no unexpected skips."""

import fcntl
import gc
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.compiler_flags import xla_flags

ROOT = Path(__file__).resolve().parent.parent
CHILD_STARTUP = ROOT / "tests" / "helpers" / "child_startup"
# A process keeps every program that it compiled; beyond this size it drops them between two modules.
MAX_RESIDENT_BYTES = 2 * 10**9
# Parts of the reasons for which a test may be skipped.
ALLOWED_SKIPS = (
    "could not import 'torch'",
    "could not import 'onnx",  # or 'onnxruntime'
    "needs PyTorch",
    "no C++ compiler",
    "no chromium",
    "needs aarch64-linux-gnu-g++ and qemu-aarch64",
    "needs jax[",  # the compilers for GPUs and TPUs
    "needs JAX 0.11",  # the first whose Pallas updates arrays in place; Python 3.11 has none so new
    "no file system may be mounted here",
    "a setting of glibc",
    "the system does not say how much memory",
    "needs /proc and two cores",
)

# Before jax is first imported, here or in a child process.
DEVICES = os.environ.setdefault("CHARJAX_TEST_DEVICES", "2")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# LLVM's optimizations take half of a test's time; 0 tests with them, as before a release.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = xla_flags(DEVICES)
# One cache for all workers and their children, outside the clone.
CACHE = Path(os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/charjax-tests-{os.getuid()}"))
CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
if str(CHILD_STARTUP) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHILD_STARTUP), os.environ.get("PYTHONPATH")]))
    runpy.run_path(str(CHILD_STARTUP / "sitecustomize.py"))

# Tests send SIGINT, which a shell's background jobs ignore.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from helpers.real_runs import uninterrupted_run  # noqa: E402
from hypothesis import settings  # noqa: E402

from charjax.host.memory import release_unused_memory  # noqa: E402

settings.register_profile("charjax", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("charjax")

# What is imported stays; the collector would scan it again and again.
gc.freeze()
gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return fail_unexpected_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_unexpected_skip((yield))


def fail_unexpected_skip(report):
    """Fails what was skipped for a reason that is not listed: it protects nothing, and nobody would notice."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1]
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome, report.longrepr = "failed", f"{reason} (not in ALLOWED_SKIPS of tests/conftest.py)"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a test marked `devices(n)` in a process of its own where this one has fewer devices."""
    marker = pyfuncitem.get_closest_marker("devices")
    if marker is None or marker.args[0] <= jax.device_count():
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", pyfuncitem.nodeid]
    environment = {**os.environ, "CHARJAX_TEST_DEVICES": str(marker.args[0])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return True


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    yield
    if psutil.Process().memory_info().rss > MAX_RESIDENT_BYTES:
        jax.clear_caches()
        gc.collect()
        release_unused_memory()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The text and the folder of a run that was not interrupted, one for all workers; see helpers/real_runs.py."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "uninterrupted.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = shared / "uninterrupted"
        if not folder.exists():
            unfinished = tmp_path_factory.mktemp("unfinished")
            uninterrupted_run(unfinished)
            unfinished.rename(folder)
    return folder / "coffee.txt", folder / "run"


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _restored_log():
    """Undoes the command line's set-up of the log, which lasts."""
    logger = logging.getLogger("charjax")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
