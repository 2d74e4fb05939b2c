"""Makes writes to JAX's compilation cache atomic; Python imports this file first in every process the tests start.

All test processes share one cache. JAX writes an entry in place, so another process may read half of it, and a killed
process leaves half of it behind for good. JAX's own lock (`jax_compilation_cache_max_size`) does not help here: every
write then reads the whole folder, and a process stopped by a test may hold the lock.
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


class CacheFinder:
    """Patches JAX's cache when it is imported: importing JAX here would slow down commands that do not need it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "jax._src.lru_cache":
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            module.LRUCache.put = put

        spec.loader.exec_module = execute_and_patch
        return spec


sys.meta_path.insert(0, CacheFinder)
