"""reuse_memory keeps freed memory for the next allocation; release_unused_memory returns it to the system."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")

# Counts the pages that the system maps for the second of two equal arrays.
REUSE = """
import resource, numpy as np
from charjax.host.memory import reuse_memory
reuse_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def second_allocation(**environment):
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", REUSE], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_reused():
    assert second_allocation() < 100


def test_settings_of_the_user_stay():
    assert second_allocation(MALLOC_ARENA_MAX="4") > 100


RELEASE = """
import numpy as np
from charjax.host.memory import release_unused_memory, reuse_memory
reuse_memory()
def megabytes():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024
large = [np.ones(8_000_000) for _ in range(4)]
del large[0], large[1]
before = megabytes()
release_unused_memory()
print(before - megabytes())
"""


def test_holes_are_returned_to_the_system():
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", RELEASE], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100  # two arrays of 64 MB
