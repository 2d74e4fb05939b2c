import dataclasses
import io
import json
import math
import os
import pty

import pytest
from rich.console import Console

from charjax.errors import UserError
from charjax.metrics import Evaluation
from charjax.progress.formatting import duration, four_digits, quantity
from charjax.progress.history import History
from charjax.progress.pace import Pace
from charjax.progress.plain import PlainReporter
from charjax.progress.reporter import NullReporter, Reporter, make_reporter
from charjax.progress.terminal import TerminalReporter
from charjax.rendering.visible_text import printable
from charjax.runs.logs import MetricsLog, SamplesLog, read_metrics

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
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


# Evaluation


def test_perplexity_and_bits_follow_from_the_validation_loss():
    evaluation = make_evaluation()
    assert evaluation.perplexity == pytest.approx(4)
    assert evaluation.bits_per_char == pytest.approx(2)


@pytest.mark.parametrize(("val_loss", "expected"), [(math.inf, math.inf), (1e4, math.inf)])
def test_perplexity_of_a_hopeless_model_is_infinite(val_loss, expected):
    assert make_evaluation(val_loss=val_loss).perplexity == expected
    assert math.isnan(make_evaluation(val_loss=math.nan).perplexity)


# metrics.jsonl


def test_metrics_are_one_json_object_per_line_in_the_order_of_the_contract(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation())
        lines = path.read_text().splitlines()  # before closing: a line must be there once it was appended
        log.append(make_evaluation(500))
    assert len(lines) == 1
    values = json.loads(lines[0])
    assert list(values) == [
        "step",
        "epoch",
        "train_loss",
        "val_loss",
        "perplexity",
        "bits_per_char",
        "chars_per_second",
        "elapsed_seconds",
        "skipped_steps",
    ]
    assert values["perplexity"] == pytest.approx(4)
    assert values["bits_per_char"] == pytest.approx(2)
    assert read_metrics(path) == [make_evaluation(), make_evaluation(500)]


def test_numbers_that_are_not_finite_become_null_and_come_back_as_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation(train_loss=math.nan, val_loss=math.inf, chars_per_second=None))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads(path.read_text(), parse_constant=refuse)
    nulls = [name for name, value in values.items() if value is None]
    assert nulls == ["train_loss", "val_loss", "perplexity", "bits_per_char", "chars_per_second"]
    (back,) = read_metrics(path)
    assert math.isnan(back.train_loss)
    assert math.isnan(back.val_loss)
    assert back.chars_per_second is None


def test_a_last_line_cut_off_is_left_out_when_read_and_dropped_when_appended_to(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation(1))
        log.append(make_evaluation(2))
    path.write_bytes(path.read_bytes()[:-5])
    assert read_metrics(path) == [make_evaluation(1)]
    with MetricsLog(path) as log:
        log.append(make_evaluation(3))
    assert read_metrics(path) == [make_evaluation(1), make_evaluation(3)]


def test_a_log_goes_on_from_the_size_it_had(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        assert log.size == 0
        log.append(make_evaluation(1))
        size = log.size
        log.append(make_evaluation(2))
    assert size == len(make_evaluation(1).to_json()) + 1
    with MetricsLog(path, size=size) as log:
        assert log.size == size
        log.append(make_evaluation(3))
        assert log.size == path.stat().st_size
    assert read_metrics(path) == [make_evaluation(1), make_evaluation(3)]
    with MetricsLog(path, size=0) as log:
        assert log.size == 0
    assert read_metrics(path) == []


def test_a_size_beyond_the_end_keeps_the_file_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(make_evaluation(1))
    before = path.read_bytes()
    with MetricsLog(path, size=10_000):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting"),
        ("[1]", "not a JSON object"),
        ('{"step": null}', "step is None"),
        ('{"step": 1}', "is missing"),
        (make_evaluation().to_json().replace("83.25", '"fast"'), "elapsed_seconds is 'fast'"),
        ("\x80", "."),
    ],
)
def test_a_line_in_the_middle_that_is_no_evaluation_is_named(tmp_path, line, why):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([make_evaluation().to_json().encode(), line.encode("latin-1"), b"{}", b""]))
    with pytest.raises(UserError, match=rf"metrics\.jsonl line 2 is not an evaluation .*{why}"):
        read_metrics(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/metrics\.jsonl"):
        MetricsLog(tmp_path / "none" / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


# samples.txt


def test_samples_have_a_heading_and_the_text_as_it_is(tmp_path):
    path = tmp_path / "samples.txt"
    with SamplesLog(path) as log:
        log.append(make_evaluation(), "Ay me!\r\nπ [x]")
        size = log.size
        log.append(make_evaluation(500), "later")
    with SamplesLog(path, size=size) as log:
        log.append(make_evaluation(750), "again \udc80")
    heading = "=== step {}, epoch {}, validation loss 1.3863 nats per character ===\n{}\n\n"
    expected = heading.format(250, "1.00", "Ay me!\r\nπ [x]") + heading.format(750, "3.00", "again \\udc80")
    assert path.read_bytes() == expected.encode()


# what numbers look like


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "    0"),
        (999.4, "  999"),
        (999.6, "1.00k"),
        (9_994, "9.99k"),
        (9_996, "10.0k"),
        (99_960, " 100k"),
        (999_600, "1.00M"),
        (41e6, "41.0M"),
        (2.5e12, "2500G"),
        (math.nan, "    -"),
    ],
)
def test_quantity(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3_599.4, "0:59:59"), (90_061, "25:01:01"), (math.nan, "-:--:--")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1.000"), (4.29, "4.290"), (42.9, "42.90"), (128, "128.0"), (5000, " 5000"), (math.inf, "  inf")],
)
def test_four_digits(value, text):
    assert four_digits(value) == text


# speed


def test_speed_leaves_out_compilation_and_evaluation():
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


def test_speed_survives_updates_without_time_or_steps():
    pace = Pace(10, 0, 1, 1, Clock())
    for _ in range(3):
        pace.update(0, 2.0)
    assert math.isnan(pace.chars_per_second)
    assert math.isnan(pace.seconds_left)


# harmless text


def test_printable_shows_what_would_steer_a_terminal():
    assert printable(HOSTILE) == "[bold]art[/] ␛[31mred␛[0m␇ \\x9b2J a␍b\n\\u202eevil :smile: ␡"
    assert printable("tab\tkept\nπ日\u200d\u2028\ud800\udc9f") == "tab\tkept\nπ日\u200d\\u2028\\ud800\\x9f"


def test_printable_keeps_to_the_encoding():
    assert printable("π é\x1b", "latin-1") == "\\u03c0 é\\u241b"


# lines


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


def test_each_line_is_flushed_and_a_closed_pipe_is_heard_of():
    read_end, write_end = os.pipe()
    with open(write_end, "w", encoding="utf-8") as file:
        reporter = PlainReporter(file)
        reporter.message("hello")
        assert os.read(read_end, 100) == b"hello\n"
        os.close(read_end)
        with pytest.raises(BrokenPipeError):
            reporter.message("anyone?")
        with pytest.raises(BrokenPipeError):
            file.flush()  # what could not be written stays in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)


# the terminal


def make_terminal(width=80, **changes):
    file = changes.pop("file", None) or io.StringIO()
    return Console(file=file, width=width, height=24, force_terminal=True, _environ={}, **changes)


def run_terminal(console, sample=HOSTILE):
    clock = Clock()
    reporter = TerminalReporter(console, clock=clock)
    reporter.start(1000, 0, 6400, epochs=4)
    reporter.message("[red]watch[/red]")
    for step in range(250, 1001, 250):
        for part in (step - 200, step - 100, step):
            clock.sleep(1)
            reporter.update(part, 2.25)
        reporter.evaluation(make_evaluation(step), sample)
    reporter.stop()
    reporter.stop()
    return console.file.getvalue() if isinstance(console.file, io.StringIO) else ""


def test_a_terminal_shows_evaluations_samples_and_the_bar_in_its_width():
    lines = plain_text(run_terminal(make_terminal())).splitlines()
    assert "[red]watch[/red]" in lines
    assert "0:00:03  epoch 1.00  step   250  train 1.5000  val 1.3863  perplexity 4.000" in lines
    assert "  │ [bold]art[/] ␛[31mred␛[0m␇ \\x9b2J a␍b" in lines
    bar, numbers = lines[-2:]
    assert bar.startswith("epoch 4.00/4  ━━━━")
    assert bar.endswith("step 1,000/1,000  0:00:12 in all")
    assert numbers.split() == [
        "train",
        "1.5000",  # the evaluation's, newer than the last update's
        "val",
        "1.3863",
        "perplexity",
        "4.000",
        "480k",
        "characters/s",
    ]
    assert max(map(len, lines)) <= 80


def test_the_lowest_validation_loss_stands_out():
    console = make_terminal(color_system="standard")
    output = run_terminal(console)
    assert output.count("\x1b[1;32mval 1.3863") == 1  # equal losses afterwards are no better
    assert output.count("\x1b[1mval 1.3863") == 3


def test_where_every_call_is_evaluated_the_speed_is_the_evaluations_own():
    console = make_terminal()
    reporter = TerminalReporter(console, clock=Clock())
    reporter.start(10, 0, 6400)
    for step in (1, 2):
        reporter.update(step, 2.25)
        reporter.evaluation(make_evaluation(step))
    reporter.stop()
    assert plain_text(console.file.getvalue()).endswith("1.20M characters/s")


def test_nothing_of_a_hostile_sample_reaches_the_terminal_as_it_is():
    output = run_terminal(make_terminal(color_system=None))
    for dangerous in ("\x07", "\x9b", "\x7f", "\u202e", "\x1b[31mred"):
        assert dangerous not in output


def test_a_long_line_wraps_behind_its_rule():
    output = plain_text(run_terminal(make_terminal(width=40), sample="word " * 30))
    sample_lines = [line for line in output.splitlines() if line.startswith("  │")]
    assert len(sample_lines) == 4 * 5
    assert max(map(len, output.splitlines()[-2:])) <= 40


def test_an_ascii_terminal_gets_ascii():
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="ascii")
    run_terminal(make_terminal(file=file, color_system=None), sample="π")
    file.flush()
    assert b"  | \\u03c0" in buffer.getvalue()


def plain_text(output):
    """What stays on a terminal: lines cleared by the live bar and styles are taken out."""
    screen, row = [""], 0
    index = 0
    while index < len(output):
        character = output[index]
        if output.startswith("\x1b[", index):
            end = index + 2
            while not output[end].isalpha():
                end += 1
            count, command = output[index + 2 : end], output[end]
            if command == "A":
                row -= int(count)
            elif command == "K":
                screen[row] = ""
            index = end + 1
            continue
        if character == "\n":
            row += 1
            if row == len(screen):
                screen.append("")
        elif character != "\r":
            screen[row] += character
        index += 1
    return "\n".join(line.rstrip() for line in screen).rstrip("\n")


# which of them


def test_the_reporter_follows_where_it_writes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_reporter(io.StringIO()), PlainReporter)
    controller, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8") as file:
        assert isinstance(make_reporter(file), TerminalReporter)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_reporter(file), PlainReporter)
    os.close(controller)


def test_the_null_reporter_says_nothing(capsys):
    reporter: Reporter = NullReporter()
    reporter.start(10, 0, 100, epochs=1)
    reporter.update(1, 2.0)
    reporter.evaluation(make_evaluation(), "text")
    reporter.message("text")
    reporter.stop()
    assert capsys.readouterr() == ("", "")


def test_a_history_keeps_what_it_is_told_and_says_nothing(capsys):
    history = History()
    reporter: Reporter = history
    reporter.start(10, 0, 100, epochs=1)
    for step, text in ((5, "a"), (10, "")):
        reporter.evaluation(make_evaluation(step=step), text)
    reporter.stop()
    assert [evaluation.step for evaluation in history.evaluations] == [5, 10]
    assert history.samples == ["a", ""]
    assert capsys.readouterr() == ("", "")


def test_an_evaluation_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_evaluation().step = 3
