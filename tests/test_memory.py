"""reuse_memory: large pieces that were freed are used again, unless the user has set the C library up."""

import os
import subprocess
import sys

import pytest

# Counts the pages that the system has to hand out for the second of two equal arrays.
CODE = """
import resource, numpy as np
from charjax.memory import reuse_memory
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
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again():
    assert second_allocation() < 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_what_the_user_set_stays():
    assert second_allocation(MALLOC_ARENA_MAX="4") > 100
