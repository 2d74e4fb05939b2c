"""The weight-traffic limit: how often per second this machine can read a step's weights, by a program in C++."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from charjax.host.cpu import available_cores

SOURCE = Path(__file__).with_name("bandwidth.cc")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-pthread")


def build(folder: Path) -> Path | None:
    """Compiles the program into a folder, and returns its path; None where the system has no C++ compiler.

    Raises:
        subprocess.CalledProcessError: the compiler rejects it.
    """
    compiler = next(
        (path for name in (os.environ.get("CXX"), "g++", "c++") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        return None
    program = folder / "bandwidth"
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program)], check=True)
    return program


def measure(program: Path, count: int, seconds: float) -> dict[str, Any]:
    """Reads `count` bytes from the same place over and over, by one thread and by one per core.

    Returns:
        "seconds", the least time of a pass, "threads", how many took it, and "gigabytes_per_second" for each number
        of threads.
    """
    least = {}
    for threads in sorted({1, available_cores()}):
        done = subprocess.run(
            [str(program), str(count), str(threads), str(seconds)], capture_output=True, text=True, check=True
        )
        least[threads] = float(done.stdout.split()[0])
    threads = min(least, key=lambda number: least[number])
    rates = {str(number): count / time / 1e9 for number, time in least.items()}
    return {"seconds": least[threads], "threads": threads, "gigabytes_per_second": rates}
