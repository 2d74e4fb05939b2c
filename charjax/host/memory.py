"""How the C library deals with the memory that training works in."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

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


_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


# Files of a control group, in versions 2 and 1 of the interface: limit and use.
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that are free: of the device with the least, or for processors of the system; None where nothing tells."""
    if devices[0].platform == "cpu":
        return system_memory()
    # Other hosts' devices cannot be asked.
    told = [_device_memory(device) for device in devices if device.process_index == jax.process_index()]
    return min((size for size in told if size is not None), default=None)


def room_for_text(devices: Sequence[jax.Device] = ()) -> int | None:
    """Bytes that a text may take in this process, and on its devices, of which each has its share of the text.

    A quarter of what is free, of the system or the devices, whichever have less; None where nothing tells.
    """
    rooms = [system_memory()]
    if devices and devices[0].platform != "cpu":
        local = sum(device.process_index == jax.process_index() for device in devices)
        least = available_memory(devices)
        rooms.append(None if least is None else least * local)
    return min((room // 4 for room in rooms if room is not None), default=None)


def system_memory() -> int | None:
    """Bytes that the system and the process's control groups leave free; None where nothing tells."""
    told = (_available_memory(), _cgroup_memory())
    return min((size for size in told if size is not None), default=None)


def _device_memory(device: jax.Device) -> int | None:
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)


def _available_memory() -> int | None:
    """What Linux takes to be available without swapping."""
    for line in _lines(_PROC / "meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_memory() -> int | None:
    """What the control groups that the process is in, those of a container for example, leave to it."""
    rooms = []
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            group = _CGROUP / controllers / name.lstrip("/")
            rooms += [_room_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(_CGROUP)]
    return min((room for room in rooms if room is not None), default=None)


def _room_of(group: Path) -> int | None:
    for limit, used in _CGROUP_FILES:
        sizes = [int(line) for name in (limit, used) for line in _lines(group / name)[:1] if line.isdecimal()]
        if len(sizes) == 2:
            # Cached files count as used, but make room.
            return sizes[0] - sizes[1] + _cached_files(group)
    return None


def _cached_files(group: Path) -> int:
    counts = dict(line.split() for line in _lines(group / "memory.stat"))
    return sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where it does not tell: other systems have no such file, or hide it."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
