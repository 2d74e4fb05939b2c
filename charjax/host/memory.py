"""Measures the free memory of the machine and its devices, and tunes glibc's allocator for training."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from charjax.host.limits import limit_on, space_for_programs

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_LARGEST_INT = 2**31 - 1

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
# A control group's limit and usage files, in versions 2 and 1 of the interface.
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def reuse_memory() -> None:
    """Makes glibc keep freed memory for the next allocation instead of returning it to the system.

    XLA allocates a program's working memory, hundreds of megabytes for a training step, again on each call. By default
    the system then has to map and zero every page again, which takes up to a third of a step (docs/performance.md).
    Call this before JAX is first used. The process keeps its peak size until it ends. Does nothing with other C
    libraries, or if the user has set GLIBC_TUNABLES or MALLOC_ARENA_MAX.
    """
    _tune_allocator({_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST_INT})


def save_address_space() -> None:
    """Makes all threads allocate from one heap if `ulimit -v` limits the address space.

    By default, glibc reserves 64 MB of address space per thread. Does nothing wherever `reuse_memory` does nothing.
    """
    if limit_on("AS") is not None:
        _tune_allocator({_M_ARENA_MAX: 1})


def _tune_allocator(settings: dict[int, int]) -> None:
    set_by_user = "GLIBC_TUNABLES" in os.environ or "MALLOC_ARENA_MAX" in os.environ
    if set_by_user or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in settings.items():
            mallopt(name, value)


def release_unused_memory() -> None:
    """Makes glibc return currently unused memory to the system; does nothing with other C libraries.

    Compilation and a program's first calls leave small allocations between large ones, and holes slightly too small for
    the next large allocation, so that they would never be reused. Call this after each of a program's first few calls;
    from then on its allocations repeat, so trimming again gains nothing.
    """
    if sys.platform.startswith("linux"):
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def room_for_text(devices: Sequence[jax.Device] = ()) -> int | None:
    """Returns the bytes that the text may occupy in this process and on its devices, each of which holds a share of it.

    This is a quarter of the free memory of the system or of the devices, whichever is less; None if unknown.
    """
    rooms = [system_memory()]
    if devices and devices[0].platform != "cpu":
        local = sum(device.process_index == jax.process_index() for device in devices)
        least = available_memory(devices)
        rooms.append(None if least is None else least * local)
    return min((room // 4 for room in rooms if room is not None), default=None)


def available_memory(devices: Sequence[jax.Device]) -> int | None:
    """Returns the bytes that are free on the fullest device or, for CPUs, in the system; None if unknown."""
    if devices[0].platform == "cpu":
        return system_memory()
    # Devices of other hosts cannot be queried.
    sizes = [_device_memory(device) for device in devices if device.process_index == jax.process_index()]
    return min((size for size in sizes if size is not None), default=None)


def _device_memory(device: jax.Device) -> int | None:
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)


def system_memory() -> int | None:
    """Returns the bytes that the system, control groups and `ulimit` leave for this process; None if unknown."""
    sizes = (_available_memory(), _cgroup_memory(), _room_in_limits())
    return min((size for size in sizes if size is not None), default=None)


def _available_memory() -> int | None:
    """Returns the memory available without swapping, as counted by Linux; like psutil, but without its 30 ms import."""
    for line in _lines(_PROC / "meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _room_in_limits() -> int | None:
    """Returns the bytes that the limits on this process, e.g. from a batch system, leave for arrays."""
    pages = [int(count) for line in _lines(_PROC / "self" / "statm") for count in line.split()]
    if not pages:
        return None
    rooms = []
    for name, column in (("AS", 0), ("DATA", 5)):
        limit = limit_on(name)
        if limit is not None:
            # Programs that have yet to be compiled will need space, too.
            used = max(os.sysconf("SC_PAGE_SIZE") * pages[column], space_for_programs(name))
            # Half of the rest: heaps have holes, and XLA waits a minute, then aborts, if only some devices find room.
            rooms.append(max(0, limit - used) // 2)
    return min(rooms, default=None)


def _cgroup_memory() -> int | None:
    """Returns the bytes that this process's control groups, e.g. a container's, leave free."""
    rooms = []
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            group = _CGROUP / controllers / name.lstrip("/")
            rooms += [_room_in(folder) for folder in (group, *group.parents) if folder.is_relative_to(_CGROUP)]
    return min((room for room in rooms if room is not None), default=None)


def _room_in(group: Path) -> int | None:
    for limit, used in _CGROUP_FILES:
        sizes = [int(line) for name in (limit, used) for line in _lines(group / name)[:1] if line.isdecimal()]
        if len(sizes) == 2:
            # Cached files count as used, but can be dropped.
            return sizes[0] - sizes[1] + _cached_files(group)
    return None


def _cached_files(group: Path) -> int:
    counts = dict(line.split() for line in _lines(group / "memory.stat"))
    return sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))


def _lines(path: Path) -> list[str]:
    """Returns the lines of a system file; an empty list if it is missing or unreadable, e.g. on other systems."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
