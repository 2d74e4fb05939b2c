"""ThroughputMeter: losses one call late, speed without pauses, calls of about a second."""

import itertools
import math

import numpy as np
import pytest

from charjax.runs.metadata import Progress
from charjax.training.step import TrainMetrics
from charjax.training.throughput import CALL_SECONDS, ThroughputMeter

START = Progress(step=0)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def metrics(nats, chars, skipped=0, in_a_row=0):
    return TrainMetrics(np.float32(nats), np.int32(chars), np.float32(1), np.int32(skipped), np.int32(in_a_row))


def test_metrics_are_read_one_call_late():
    meter = ThroughputMeter(START, clock=Clock())
    meter.push(metrics(20, 10), 1)
    assert math.isnan(meter.latest_loss)
    assert math.isnan(meter.loss)
    meter.push(metrics(10, 10), 1)
    assert meter.latest_loss == 2.0
    meter.flush()
    assert meter.latest_loss == 1.0
    assert meter.loss == 1.5


def test_it_continues_earlier_sums_and_restarts_after_an_evaluation():
    meter = ThroughputMeter(Progress(step=0, train_nats=30.0, train_count=10), clock=Clock())
    meter.push(metrics(10, 10), 1)
    meter.flush()
    assert meter.loss == 2.0
    meter.restart()
    assert math.isnan(meter.loss)


def call(meter, clock, seconds, chars=100):
    """Dispatches a call that takes so long, to compile or to wait for the previous call."""
    meter.begin()
    clock.now += seconds
    meter.push(metrics(1, chars), 1)


def test_speed_excludes_compilation_and_pauses():
    clock = Clock()
    meter = ThroughputMeter(START, steps_per_call=1, clock=clock)
    for seconds in (50.0, 2.0, 2.0):  # the first one compiles
        call(meter, clock, seconds)
    clock.now += 2.0
    meter.flush()
    assert meter.chars_per_second == 50.0
    clock.now += 1000.0  # an evaluation
    for seconds in (0.0, 2.0, 2.0):  # nothing to wait for, then the previous call
        call(meter, clock, seconds)
    clock.now += 2.0
    meter.flush()
    assert meter.chars_per_second == pytest.approx(50.0)


def test_an_interval_of_one_call_is_timed():
    clock = Clock()
    meter = ThroughputMeter(START, steps_per_call=1, clock=clock)
    speeds = []
    for seconds in (50.0, 2.0, 4.0):
        call(meter, clock, seconds)
        meter.flush()
        speeds.append(meter.chars_per_second)
        meter.restart()
        clock.now += 1000.0  # an evaluation
    assert speeds == [2.0, 50.0, 25.0]  # with nothing else timed, compilation counts


def test_before_anything_is_timed_there_is_no_speed():
    assert ThroughputMeter(START, clock=Clock()).chars_per_second is None


@pytest.mark.parametrize("seconds_per_step", [0.001, 0.02, 2.0])
def test_calls_settle_at_one_second(seconds_per_step):
    clock = Clock()
    meter = ThroughputMeter(START, clock=clock)
    assert meter.steps_per_call == 1
    sizes = []
    for _ in range(20):
        steps = meter.steps_per_call
        sizes.append(steps)
        meter.begin()
        meter.push(metrics(1, 1), steps)
        clock.now += steps * seconds_per_step
    assert all(after <= 2 * before for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == pytest.approx(max(1, CALL_SECONDS / seconds_per_step), rel=0.1)


def test_a_requested_number_of_steps_is_kept():
    clock = Clock()
    meter = ThroughputMeter(START, steps_per_call=3, clock=clock)
    for _ in range(5):
        meter.begin()
        meter.push(metrics(1, 1), 3)
        clock.now += 0.001
    assert meter.steps_per_call == 3
