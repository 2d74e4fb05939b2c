"""keep_lapack_on_one_thread: LAPACK starts no threads, and settings of the user stay."""

import os
import subprocess
import sys

import pytest

from charjax.host.cpu import available_cores

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or available_cores() < 2, reason="needs /proc and two cores"
)

PROGRAM = """
import os, numpy  # has another copy of OpenBLAS, with threads
from charjax.host.cpu import keep_lapack_on_one_thread
def threads():
    return len(os.listdir("/proc/self/task"))
before, given = threads(), dict(os.environ)
keep_lapack_on_one_thread("cpu")
import scipy.linalg.cython_lapack
assert dict(os.environ) == given
print(threads() - before)
"""


@pytest.mark.parametrize(("given", "started"), [({}, 0), ({"OPENBLAS_NUM_THREADS": "2"}, 1)])
def test_lapack_starts_no_threads_unless_the_user_wants_them(given, started):
    others = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env={**others, **given}, capture_output=True, text=True, check=True)
    assert int(done.stdout) == started
