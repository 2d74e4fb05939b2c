"""Signals: the first sets a flag, a second Ctrl-C or SIGTERM acts as usual, and Ctrl-C during imports is one line."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers.real_runs import handled_by_default

from charjax.cli.startup import exit_at_once, exit_on_interrupt, raise_on_interrupt
from charjax.host.signals import SignalCatcher


@pytest.fixture(autouse=True)
def _as_outside_nohup():
    with handled_by_default(signal.SIGHUP):
        yield


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_recorded(signum):
    before = [signal.getsignal(number) for number in SignalCatcher.SIGNALS]
    with SignalCatcher() as catcher:
        assert catcher.received is None
        os.kill(os.getpid(), signum)
        assert catcher.received == signum
    assert [signal.getsignal(number) for number in SignalCatcher.SIGNALS] == before


def test_the_second_signal_acts_as_before():
    with SignalCatcher() as catcher:
        os.kill(os.getpid(), signal.SIGINT)
        assert catcher.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


CATCH = """
import signal, sys
from charjax.host.signals import SignalCatcher
first, *at_once = map(int, sys.argv[1:])
with SignalCatcher() as catcher:
    signal.raise_signal(first)
    # All of them arrive before Python handles any.
    signal.pthread_sigmask(signal.SIG_BLOCK, at_once)
    for number in at_once:
        signal.raise_signal(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, at_once)
    print("received", catcher.received, flush=True)
"""


def catch(*numbers):
    """Runs a process that receives one signal and then several at once -> exit code, output, errors."""
    command = [sys.executable, "-c", CATCH, *(str(int(number)) for number in numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_sigterm_right_after_ctrl_c_ends_the_process_without_complaint():
    assert catch(signal.SIGHUP, signal.SIGINT, signal.SIGTERM) == (-signal.SIGTERM, "", "")


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGHUP, signal.SIGHUP),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGINT, signal.SIGHUP),
        (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP),
    ],
)
def test_a_closing_terminal_does_not_count_as_a_second_signal(numbers):
    assert catch(*numbers) == (0, f"received {int(numbers[0])}\n", "")


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalCatcher() as catcher:
        os.kill(os.getpid(), signal.SIGHUP)
        assert catcher.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_handlers_not_set_by_python_are_left_alone(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with SignalCatcher():
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="x"), SignalCatcher():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_is_left_alone():
    received = []

    def work():
        with SignalCatcher() as catcher:
            received.append(catcher.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert received == [None]


@pytest.mark.parametrize("module", ["tyro", "charjax.cli.commands.info", "jax.numpy"])
def test_an_interrupted_import_is_one_line(tmp_path, module):
    code = f"""
import os, signal, sys
class Interrupter:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
from charjax.__main__ import main
sys.argv[1:] = ["info", "nowhere"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "charjax: interrupted\n")


def test_ctrl_c_in_a_garbage_collection_is_not_lost(tmp_path):
    """JAX has a callback there, in which Python drops a KeyboardInterrupt."""
    code = """
import gc, signal, sys
def interrupt(phase, info):
    gc.callbacks.remove(interrupt)
    signal.raise_signal(signal.SIGINT)
def audit(event, args):
    if event == "open" and str(args[0]).endswith("config.json"):  # the command has begun
        gc.callbacks.append(interrupt)
        gc.collect()
sys.addaudithook(audit)
from charjax.__main__ import main
sys.argv[1:] = ["info", sys.argv[1]]
main()
"""
    (tmp_path / "config.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "charjax: interrupted\n")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exit_on_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handler_is_restored():
    with exit_on_interrupt():
        assert signal.getsignal(signal.SIGINT) is exit_at_once
        with raise_on_interrupt(), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is exit_at_once
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
