"""`python -m charjax`, and the command `charjax`."""

import os
import sys
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main() -> None:
    """Runs the command line and exits with its code."""
    if sys.argv[1:2] == ["train"]:
        _start_again_with_huge_pages()
    from charjax.cli import main as run  # noqa: PLC0415 -- what it imports must find the process as it will stay

    sys.exit(run())


def _start_again_with_huge_pages(setting: Path = SETTING) -> None:
    """Makes the C library ask for huge pages, where the system gives them to those who ask.

    A training step works in a few hundred megabytes, which come from the system 4 kilobytes at a time: with huge pages
    a step takes 5 to 35% less time (benchmarks/NOTES.md). The setting is read when a process starts; one that the user
    has made in GLIBC_TUNABLES stays.
    """
    if "GLIBC_TUNABLES" in os.environ or not setting.exists() or "[madvise]" not in setting.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    main()
