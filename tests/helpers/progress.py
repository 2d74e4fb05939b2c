"""An evaluation, a clock that is set by hand, and hostile text, for tests of reporters and logs."""

import math

from charjax.metrics import Evaluation

HOSTILE = "[bold]art[/] \x1b[31mred\x1b[0m\x07 \x9b2J a\rb\r\n\u202eevil :smile: \x7f"


def make_evaluation(step=250, **changes):
    values = {
        "step": step,
        "epoch": step / 250,
        "train_loss": 1.5,
        "val_loss": math.log(4),
        "chars_per_second": 1.2e6,
        "elapsed_seconds": 83.25,
    }
    return Evaluation(**values | changes)


class Clock:
    """Time that only `sleep` advances."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
