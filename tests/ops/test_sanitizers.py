"""The kernel under AddressSanitizer and UndefinedBehaviorSanitizer, in every form that this machine can run."""

import os
import shutil
import subprocess
import sys

import pytest

SANITIZERS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
TESTS = ["tests/ops/test_lstm.py", "tests/ops/test_native.py", "tests/ops/test_single_step.py", "tests/generation"]


def run(*command, folder, **environment):
    """Runs a command in a folder -> what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-10_000:]}\n{done.stderr[-10_000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++") or sys.platform != "linux", reason="no C++ compiler for Linux")
def test_the_kernel_is_clean(root, tmp_path):
    for name in ("charjax", "tests", "benchmarks", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    for library in tmp_path.rglob("*.so"):
        library.unlink()
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" {SANITIZERS}\n')
    compiler.chmod(0o755)
    run(sys.executable, "setup.py", "build_ext", "--inplace", folder=tmp_path, CXX=str(compiler), CC=str(compiler))
    # C++'s own library as well: the sanitizer cannot find its functions in the copy that jaxlib brings.
    libraries = [run("c++", f"-print-file-name={name}", folder=tmp_path) for name in ("libasan.so", "libstdc++.so.6")]
    printed = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", "-m", "", *TESTS),
        folder=tmp_path,
        LD_PRELOAD=" ".join(map(str.strip, libraries)),
        ASAN_OPTIONS="detect_leaks=0",  # Python does not free everything at its end
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    print(printed.splitlines()[-1])
