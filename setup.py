"""Compiles the LSTM kernel for processors; all else about the package stands in pyproject.toml.

The kernel is compiled once for each instruction set that pays, and charjax loads the best that the processor has. Where
there is no C++ compiler the package installs without it, and trains by other means.
"""

import os
import platform
import sys

import jax
from setuptools import Extension, setup

FOLDER = "charjax/ops/lstm/native"
HEADERS = [
    f"{FOLDER}/{name}.h"
    for name in ("vectors", "products", "layer", "forward", "backward", "noise", "choice", "team", "generate", "lstm")
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
FLAGS: dict[str, list[str]] = {"generic": []}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"]}


def extension(instructions: str) -> Extension:
    """One form of the kernel: a library with C symbols, which no Python module stands behind."""
    common = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-isystem", jax.ffi.include_dir()]
    return Extension(
        f"{FOLDER.replace('/', '.')}._{instructions}",
        [f"{FOLDER}/{instructions}.cc"],
        depends=HEADERS,
        extra_compile_args=[*common, *FLAGS[instructions]],
        language="c++",
        optional=True,
    )


setup(
    ext_modules=[] if sys.platform == "win32" else [extension(name) for name in FLAGS],
    options={"build_ext": {"parallel": os.cpu_count()}},
)
