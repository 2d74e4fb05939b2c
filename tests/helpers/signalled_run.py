"""Commands that send themselves a signal at a given step, so that no test depends on when a signal arrives."""

import sys

PROGRAM = """
import itertools, os, sys, time
from charjax.distributed.processes import Council

calls, signum, at_call, awaited = itertools.count(1), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
cast = Council.cast

def cast_and_signal(self, votes):
    if next(calls) == at_call:
        while awaited and not os.path.exists(awaited):
            time.sleep(0.01)
        os.kill(os.getpid(), signum)
    return cast(self, votes)

Council.cast = cast_and_signal
from charjax.cli.main import main
sys.exit(main(sys.argv[4:]))
"""


def signalled(command, signum, *, at_call, awaited=""):
    """Changes a command, `python -m charjax train …`, to send itself a signal before a call to the training step.

    Args:
        command: the command.
        signum: the signal.
        at_call: number of the call, from 1.
        awaited: a file that must exist first.
    """
    assert command[:3] == [sys.executable, "-m", "charjax"]
    return [sys.executable, "-c", PROGRAM, str(int(signum)), str(at_call), str(awaited), *command[3:]]
