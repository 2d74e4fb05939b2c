"""Lets all test processes share one compilation cache of JAX; Python imports this file first in every one of them.

JAX writes an entry in place, so another process may read half of it, and a killed process leaves half of it behind for
good. JAX's own lock (`jax_compilation_cache_max_size`) does not help here: every write then reads the whole folder, and
a process stopped by a test may hold the lock. Of processes that train together JAX lets only the first one write, so
the others would compile their programs in every test.
"""

import os
import sys
import threading
from importlib.machinery import PathFinder


def put(self, key, value):
    """Stores an entry; replaces `LRUCache.put`."""
    path = f"{self.path}/{key}-cache"
    if not os.path.exists(path):
        partial = f"{path}.{os.getpid()}-{threading.get_ident()}"
        with open(partial, "wb") as file:
            file.write(value)
        os.replace(partial, path)


def write(cache_key, compile_seconds, module_name, backend, executable, host_callbacks=()):
    """Stores a compiled program; replaces `_cache_write`, which does so only in the first of several processes."""
    if not host_callbacks:
        cache = sys.modules["jax._src.compilation_cache"]
        cache.put_executable_and_time(cache_key, module_name, executable, backend, int(compile_seconds))


REPLACEMENTS = {
    "jax._src.lru_cache": lambda module: setattr(module.LRUCache, "put", put),
    "jax._src.compiler": lambda module: setattr(module, "_cache_write", write),
}


class CacheFinder:
    """Patches JAX's cache when it is imported: importing JAX here would slow down commands that do not need it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in REPLACEMENTS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            REPLACEMENTS[name](module)

        spec.loader.exec_module = execute_and_patch
        return spec


sys.meta_path.insert(0, CacheFinder)
