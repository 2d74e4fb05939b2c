"""Commands that send themselves a signal at a given step, so that no test depends on when a signal arrives."""

import sys

PROGRAM = """
import itertools, os, sys
from charjax.distributed.processes import Council

calls, signum, at_call = itertools.count(1), int(sys.argv[1]), int(sys.argv[2])
cast = Council.cast

def cast_and_signal(self, votes):
    if next(calls) == at_call:
        os.kill(os.getpid(), signum)
    return cast(self, votes)

Council.cast = cast_and_signal
from charjax.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


def signalled(command, signum, *, at_call):
    """Changes a command, `python -m charjax train …`, to send itself a signal before a call to the training step."""
    assert command[:3] == [sys.executable, "-m", "charjax"]
    return [sys.executable, "-c", PROGRAM, str(int(signum)), str(at_call), *command[3:]]
