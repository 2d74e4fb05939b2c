"""Progress in a notebook."""

import re
import sys
import types

from helpers.progress import HOSTILE, Clock, make_evaluation

from charjax.progress.notebook import NotebookReporter, in_notebook


def make():
    pages, clock = [], Clock()
    return NotebookReporter(pages.append, clock=clock), pages, clock


def test_a_bar_numbers_curves_and_the_sample_are_shown_in_place():
    reporter, pages, clock = make()
    reporter.message("model    1 layer\ntext     9 characters")
    reporter.start(1000, 0, 6400, epochs=4)
    assert "compiling ..." in pages[-1]
    assert "step 0 of 1,000" in pages[-1]
    for step in range(1, 101):
        clock.sleep(0.1)
        reporter.update(step, 2.25)
        if step % 50 == 0:
            reporter.evaluation(make_evaluation(step, val_loss=3.0 - step / 100), HOSTILE)
    reporter.stop()
    assert '<progress value="100" max="1000"' in pages[-1]
    assert "train 1.5000   val 2.0000   perplexity 7.389   64.0k characters/s" in pages[-1]
    assert "model    1 layer\ntext     9 characters" in pages[-1]
    curves = re.findall(r'<polyline points="([^"]*)"', pages[-1])
    assert [len(curve.split()) for curve in curves] == [2, 2]
    assert 20 <= len(pages) <= 35  # at most two a second


def test_hostile_text_is_shown_as_text():
    reporter, pages, _ = make()
    reporter.start(10, 0, 1)
    reporter.message("<script>alert(1)</script>")
    reporter.evaluation(make_evaluation(), HOSTILE + "<img onerror=x>")
    assert "<script" not in pages[-1]
    assert "<img" not in pages[-1]
    assert "\x1b" not in pages[-1]
    assert "&lt;img onerror=x&gt;" in pages[-1]


def test_losses_that_are_not_finite_leave_a_gap():
    reporter, pages, _ = make()
    reporter.start(10, 0, 1)
    reporter.evaluation(make_evaluation(train_loss=float("nan")))
    reporter.evaluation(make_evaluation(500))
    assert [len(c.split()) for c in re.findall(r'<polyline points="([^"]*)"', pages[-1])] == [2, 1]


def test_only_a_kernel_of_ipython_is_a_notebook(monkeypatch):
    for shell, expected in ((None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=1), True)):
        module = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert in_notebook() is expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
