"""What a shell may set: limits, a locale without UTF-8, a cache that cannot be written."""

import os
import pty
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers.command_line import fails, shows
from jax.experimental.compilation_cache import compilation_cache

from charjax.cli import startup
from charjax.host import limits


def in_shell(shell, *argv, **environment):
    """Runs a command after some lines of shell -> exit code, output and errors."""
    command = ["bash", "-c", f'{shell}; exec "$@"', "bash", sys.executable, "-m", "charjax", *map(str, argv)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# ---- limits


@pytest.mark.parametrize(("name", "option"), [("AS", "v"), ("DATA", "d")])
def test_limits_that_leave_no_room_for_jax(trained, capsys, monkeypatch, name, option):
    least = startup.least_memory_limit(name)
    monkeypatch.setattr(startup, "limit_on", {name: 1024 * least - 1}.get)
    message = f"JAX needs more memory than the {least - 1:,} kB that ulimit -{option} allows; raise the limit"
    assert fails(capsys, "info", trained.run) == f"{message} with ulimit -{option} {least}"


@pytest.mark.slow  # the least limits are measured, and differ between versions of jax
def test_the_least_limits_are_enough(trained):
    least = f"ulimit -v {startup.least_memory_limit('AS')} -d {startup.least_memory_limit('DATA')}"
    code, out, err = in_shell(least, "sample", trained.run, "--length", 10)
    assert (code, err) == (0, "")
    assert len(out) == 11


def test_limits_are_read(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert limits.limit_on("AS") is None
    monkeypatch.undo()
    code = "from charjax.host.limits import limit_on; print(limit_on('AS'), limit_on('NOFILE'))"
    shell = ["bash", "-c", 'ulimit -v 4000000 -n 77; "$@"', "bash", sys.executable, "-c", code]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == f"{4000000 * 1024} 77\n"


# ---- a locale that knows only ASCII

ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_utf8(trained, tmp_path):
    """Paths and options are UTF-8, and what is written is."""
    shutil.copytree(trained.run, tmp_path / "café")
    code, out, err = in_shell(":", "sample", tmp_path / "café", "--context", "é", **ASCII_ONLY)
    assert (code, out) == (2, "")
    assert "not in the ascii vocabulary: 'é' (U+00E9)" in err


def test_a_terminal_without_utf8(trained):
    """It is read as UTF-8, although Python and readline would take ASCII only."""
    controller, end = pty.openpty()
    command = [sys.executable, "-m", "charjax", "sample", str(trained.run), "--interactive"]
    environment = {**os.environ, **ASCII_ONLY, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, env=environment, stdin=end, stdout=end, stderr=subprocess.PIPE) as process:
        os.close(end)
        for typed in (b"\xc3\xa9\n", b"\4"):
            shown = b""
            while not shown.endswith(b"> "):
                shown += os.read(controller, 1000)
            os.write(controller, typed)
        err = process.stderr.read()
        os.close(controller)
    assert process.returncode == 2
    assert rb"not in the ascii vocabulary: '\xe9' (U+00E9)" in err


# ---- a cache that cannot be written


@pytest.fixture
def cache():
    """Puts JAX's compilation cache elsewhere -> a function that does it."""
    before = jax.config.jax_compilation_cache_dir

    def move(folder):
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()

    yield move
    move(before)


def test_a_cache_that_cannot_be_written_is_one_line(trained, tmp_path, cache, monkeypatch, capsys):
    folder = tmp_path / "file" / "cache"
    (tmp_path / "file").write_text("")
    cache(str(folder))
    shows(capsys, "info", trained.run, warns=(
        f"charjax: compiled programs cannot be cached ({folder}: Not a directory), so every command recompiles them; "
        "set JAX_COMPILATION_CACHE_DIR to another folder\n"
    ))  # fmt: skip
    jax.jit(lambda: jnp.zeros(3))()  # JAX would warn, which is an error here
    cache(None)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    shows(
        capsys,
        "info",
        trained.run,
        warns="cached (no home folder), so every command recompiles them; set XDG_CACHE_HOME",
    )
