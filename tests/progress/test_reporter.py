"""The choice of a reporter, and those that show nothing."""

import io
import os
import pty

from helpers.progress import make_evaluation

from charjax.progress.history import History
from charjax.progress.plain import PlainReporter
from charjax.progress.reporter import NullReporter, Reporter, make_reporter
from charjax.progress.terminal import TerminalReporter


def test_the_reporter_depends_on_the_output(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_reporter(io.StringIO()), PlainReporter)
    controller, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8") as file:
        assert isinstance(make_reporter(file), TerminalReporter)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_reporter(file), PlainReporter)
    os.close(controller)


def test_the_null_reporter_writes_nothing(capsys):
    reporter: Reporter = NullReporter()
    reporter.start(10, 0, 100, epochs=1)
    reporter.update(1, 2.0)
    reporter.evaluation(make_evaluation(), "text")
    reporter.message("text")
    reporter.stop()
    assert capsys.readouterr() == ("", "")


def test_a_history_keeps_what_it_is_given_and_writes_nothing(capsys):
    history = History()
    reporter: Reporter = history
    reporter.start(10, 0, 100, epochs=1)
    for step, text in ((5, "a"), (10, "")):
        reporter.evaluation(make_evaluation(step=step), text)
    reporter.stop()
    assert [evaluation.step for evaluation in history.evaluations] == [5, 10]
    assert history.samples == ["a", ""]
    assert capsys.readouterr() == ("", "")
