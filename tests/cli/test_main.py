"""Exit codes of the command line, and output that nobody can read."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from charjax.cli import main as main_module
from charjax.errors import BROKEN_PIPE, Interrupted, UserError

SMALLER = "make the model, the batch or the text smaller, or raise the limits (ulimit -a)"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no\nsuch text"), 2, "charjax: error: no\\nsuch text"),
        (NotImplementedError("not here"), 2, "charjax: error: not here"),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "charjax: error: x: Permission denied; check its permissions and those of its folder",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "charjax: error: No space left on device; free some space or files",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "x"),
            2,
            "charjax: error: x: Too many open files; raise the limit on open files (ulimit -n)",
        ),
        (OSError(5, "Input/output error"), 2, "charjax: error: Input/output error"),
        (MemoryError(), 2, f"charjax: error: out of memory; {SMALLER}"),
        (
            RuntimeError("can't start new thread"),
            2,
            f"charjax: error: out of memory (can't start new thread); {SMALLER}",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
            2,
            f"charjax: error: out of memory (RESOURCE_EXHAUSTED: Out of memory); {SMALLER}",
        ),
        (Interrupted(signal.SIGTERM, "interrupted at step 3"), 143, "charjax: interrupted at step 3"),
        (KeyboardInterrupt(), 130, "charjax: interrupted"),
        (BrokenPipeError(), BROKEN_PIPE, None),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_line(monkeypatch, capsys, error, code, line):
    def fail(argv):
        raise error

    monkeypatch.setattr(main_module, "_run", fail)
    assert main_module.main(["info", "run"]) == code
    assert capsys.readouterr() == ("", f"{line}\n" if line else "")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(argv):
        raise RuntimeError("a bug")

    for run, error in ((lambda argv: 1 / 0, ZeroDivisionError), (fail, RuntimeError)):
        monkeypatch.setattr(main_module, "_run", run)
        with pytest.raises(error):
            main_module.main(["info", "run"])


def test_output_takes_any_character(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(main_module, "_run", lambda argv: print("caf\xe9\udcff"))
    assert main_module.main(["info", "run"]) == 0
    assert output.buffer.getvalue() == rb"caf\xe9\udcff" + b"\n"


def test_a_reader_that_has_enough_is_no_error(trained):
    command = f"{sys.executable} -m charjax sample {trained.run} --length 3000 | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout) == 10
    assert done.stderr == ""


def test_sampling_imports_nothing_that_only_training_needs():
    code = "import sys, charjax.cli.environment, charjax.cli.commands.sample; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"optax", "orbax", "tensorstore", "jax.experimental.pallas", "rich.progress"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("JAX_PLATFORMS=cuda", "JAX found no such devices here; unset it to use the best ones available"),
        ("JAX_NUM_CPU_DEVICES=0", "JAX found no such devices here; unset it to use the best ones available"),
        ("JAX_NUM_CPU_DEVICES=two", "is not a value that JAX accepts; unset it"),
        ("JAX_ENABLE_X64=maybe", "is not a value that JAX accepts; unset it"),
    ],
)
def test_variables_that_jax_cannot_follow_are_named(trained, variable, message):
    command = [sys.executable, "-m", "charjax", "sample", str(trained.run)]
    environment = {key: os.environ[key] for key in os.environ if key != "JAX_PLATFORMS"}
    environment |= [variable.split("=")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"charjax: error: {variable}")
    assert line.endswith(message)
