"""How the C library deals with the memory that training works in."""

import ctypes
import os
import sys

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1


def reuse_memory() -> None:
    """Makes glibc keep what is freed for what is allocated next, in place of giving it back to the system.

    XLA allocates a program's working memory, hundreds of megabytes for a training step, anew for each call, and by
    default each page of it is fetched from the system, zeroed, at its first use: up to a third of a step's time
    (benchmarks/NOTES.md). Best called before JAX is used for the first time. The process keeps its largest size until
    it ends. Other C libraries, and what the user has set in GLIBC_TUNABLES or MALLOC_ARENA_MAX, are left alone.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or "MALLOC_ARENA_MAX" in os.environ
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST)


def release_unused_memory() -> None:
    """Makes glibc give back to the system what is free at this moment.

    While a program is compiled and in its first calls, small pieces come to lie between large ones; the holes are
    then a little too small for what was in them, and are never used again. Called between the first calls of a program
    it takes nothing from those that follow: their holes are other ones. Elsewhere than with glibc it does nothing.
    """
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)
