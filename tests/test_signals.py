"""SignalCatcher: the first signal is a flag, the second acts as it always did."""

import os
import signal
import threading

import pytest

from charjax.signals import SignalCatcher


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_kept(signum):
    before = [signal.getsignal(number) for number in SignalCatcher.SIGNALS]
    with SignalCatcher() as catcher:
        assert catcher.received is None
        os.kill(os.getpid(), signum)
        assert catcher.received == signum
    assert [signal.getsignal(number) for number in SignalCatcher.SIGNALS] == before


def test_the_second_acts_as_before():
    with SignalCatcher() as catcher:
        os.kill(os.getpid(), signal.SIGINT)
        assert catcher.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_after_an_error():
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
