"""The speed of training, by a clock that is set by hand."""

import math

import pytest
from helpers.progress import Clock

from charjax.progress.pace import Pace


def test_speed_excludes_compilation_and_evaluation():
    clock = Clock()
    pace = Pace(1000, 100, 50, 1, clock)
    clock.sleep(30)  # compiles
    pace.update(110, 2.0)
    assert math.isnan(pace.chars_per_second)
    clock.sleep(1)
    pace.update(120, 2.0)
    assert pace.chars_per_second == pytest.approx(500)
    assert pace.seconds_left == pytest.approx(88)
    pace.pause()
    clock.sleep(60)  # evaluates
    pace.update(130, 2.0)
    clock.sleep(1)
    pace.update(140, 2.0)
    assert pace.chars_per_second == pytest.approx(500)
    assert pace.elapsed_seconds == 92


def test_speed_credits_time_to_the_call_that_the_device_was_busy_with():
    clock = Clock()
    pace = Pace(1000, 0, 1, 1, clock)
    for step in (1, 2, 4, 8, 16):  # each step takes a second; calls grow
        in_flight = step - pace.step
        pace.update(step, 2.0)
        clock.sleep(in_flight)
    assert pace.chars_per_second == pytest.approx(1)


def test_speed_is_that_of_the_last_ten_seconds():
    clock = Clock()
    pace = Pace(10_000, 0, 1, 1, clock)
    for step in range(1, 101):
        pace.update(step, 2.0)
        clock.sleep(1)
    for step in range(102, 402, 2):
        pace.update(step, 2.0)
        clock.sleep(0.1)
    assert pace.chars_per_second == pytest.approx(20)


def test_speed_is_unknown_without_time_or_steps():
    pace = Pace(10, 0, 1, 1, Clock())
    for _ in range(3):
        pace.update(0, 2.0)
    assert math.isnan(pace.chars_per_second)
    assert math.isnan(pace.seconds_left)
