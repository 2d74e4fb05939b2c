"""Compiles the LSTM kernel for the CPU; pyproject.toml describes everything else about the package.

The kernel is compiled once for each instruction set worth having, and charjax loads the best one that the CPU supports.
Without a C++ compiler the package installs without the kernel and uses slower implementations; so it does with a form
that does not compile, unless CHARJAX_REQUIRE_KERNEL is 1.
"""

import os
import platform
import sys
from pathlib import Path

import jax
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FOLDER = "charjax/ops/lstm/native"
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
FLAGS: dict[str, list[str]] = {"generic": []}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"]}


def extension(instructions: str) -> Extension:
    """Returns one build of the kernel: a shared library with C symbols, not a Python module."""
    common = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-isystem", jax.ffi.include_dir()]
    return Extension(
        f"{FOLDER.replace('/', '.')}._{instructions}",
        [f"{FOLDER}/{instructions}.cc"],
        depends=sorted(map(str, Path(FOLDER).glob("*.h"))),
        extra_compile_args=[*common, *FLAGS[instructions]],
        language="c++",
        optional=os.environ.get("CHARJAX_REQUIRE_KERNEL") != "1",
    )


class BuildKernel(build_ext):
    """Builds libraries without a Python version in their names, because they do not depend on it."""

    def get_ext_filename(self, fullname: str) -> str:
        """Returns the path of a library relative to the folder of the package."""
        return f"{fullname.replace('.', os.sep)}.so"


class WheelForAllPythons(bdist_wheel):
    """Builds a wheel for all Pythons of a platform; one without the kernel is not for other platforms, either."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tags of Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


class WithTexts(build_py):
    """Copies the sample texts into the package; a clone and an editable installation have them beside it."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "charjax", "data_files")
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("coffee.txt", "shakespeare.txt"):
                self.copy_file(f"data_files/{name}", str(folder))


setup(
    ext_modules=[] if sys.platform == "win32" else [extension(name) for name in FLAGS],
    cmdclass={"build_py": WithTexts, "build_ext": BuildKernel, "bdist_wheel": WheelForAllPythons},
    options={"build_ext": {"parallel": os.cpu_count()}},
)
