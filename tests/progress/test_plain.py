"""Progress as plain lines."""

import io
import os

import pytest
from helpers.progress import HOSTILE, Clock, make_evaluation

from charjax.progress.plain import PlainReporter


def run_plain(updates=120, file=None):
    clock, file = Clock(), file or io.StringIO()
    reporter = PlainReporter(file, clock=clock)
    reporter.message("resuming\x1b at step 0")
    reporter.start(1000, 0, 6400, epochs=4)
    for step in range(1, updates + 1):
        clock.sleep(0.5)
        reporter.update(step, 2.25)
        if step % 50 == 0:
            reporter.evaluation(make_evaluation(step), HOSTILE if step == 50 else "")
    reporter.stop()
    return file


def test_plain_lines_are_aligned_and_come_every_ten_seconds_and_at_evaluations():
    assert run_plain().getvalue().splitlines() == [
        "resuming␛ at step 0",
        "0:00:02  epoch 0.02  step     4  train 2.2500  12.8k char/s  0:08:18 left",
        "0:00:12  epoch 0.10  step    24  train 2.2500  12.8k char/s  0:08:08 left",
        "0:00:22  epoch 0.18  step    44  train 2.2500  12.8k char/s  0:07:58 left",
        "0:00:25  epoch 0.20  step    50  train 1.5000  val 1.3863  perplexity 4.000",
        "",
        "    [bold]art[/] ␛[31mred␛[0m␇ \\x9b2J a␍b",
        "    \\u202eevil :smile: ␡",
        "",
        "0:00:35  epoch 0.28  step    70  train 2.2500  12.8k char/s  0:07:45 left",
        "0:00:45  epoch 0.36  step    90  train 2.2500  12.8k char/s  0:07:35 left",
        "0:00:50  epoch 0.40  step   100  train 1.5000  val 1.3863  perplexity 4.000",
        "0:01:00  epoch 0.48  step   120  train 2.2500  12.8k char/s  0:07:20 left",
    ]


def test_plain_lines_go_to_a_file_of_a_narrow_encoding():
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="ascii")
    run_plain(file=file)
    assert b"\\u241b[31mred" in buffer.getvalue()


def test_each_line_is_flushed_and_a_closed_pipe_raises():
    read_end, write_end = os.pipe()
    with open(write_end, "w", encoding="utf-8") as file:
        reporter = PlainReporter(file)
        reporter.message("hello")
        assert os.read(read_end, 100) == b"hello\n"
        os.close(read_end)
        with pytest.raises(BrokenPipeError):
            reporter.message("anyone?")
        with pytest.raises(BrokenPipeError):
            file.flush()  # unwritten text stays in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)
