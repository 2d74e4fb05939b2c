"""Flags of XLA that make it compile sooner: most of a test's time is compilation."""

import os
from importlib.metadata import version


def xla_flags(devices):
    """Returns XLA_FLAGS for a number of CPU devices; programs run a little slower than a user's."""
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
        # A program in one part: in several, each takes its own passes.
        flags.append("--xla_cpu_parallel_codegen_split_count=1")
        if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know the flag
            # The older emitters take half the time.
            flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)
