"""Progress on a terminal."""

import io

from helpers.progress import HOSTILE, Clock, make_evaluation
from rich.console import Console

from charjax.progress.terminal import TerminalReporter


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


def plain_text(output):
    """Returns what stays on a terminal, without styles and the lines that the live bar cleared."""
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
        "1.5000",  # from the evaluation, which is newer than the last update
        "val",
        "1.3863",
        "perplexity",
        "4.000",
        "480k",
        "characters/s",
    ]
    assert max(map(len, lines)) <= 80


def test_the_lowest_validation_loss_is_green():
    console = make_terminal(color_system="standard")
    output = run_terminal(console)
    assert output.count("\x1b[1;32mval 1.3863") == 1  # later equal losses are not lower
    assert output.count("\x1b[1mval 1.3863") == 3


def test_if_every_call_is_evaluated_the_speed_is_that_of_the_evaluation():
    console = make_terminal()
    reporter = TerminalReporter(console, clock=Clock())
    reporter.start(10, 0, 6400)
    for step in (1, 2):
        reporter.update(step, 2.25)
        reporter.evaluation(make_evaluation(step))
    reporter.stop()
    assert plain_text(console.file.getvalue()).endswith("1.20M characters/s")


def test_control_characters_of_a_sample_do_not_reach_the_terminal():
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
