"""fit's optimizers, callbacks, patience, trackers and progress, and what Ctrl-C leaves without a run folder."""

import dataclasses
import functools
import json
import logging
import os
import re
import signal
import typing

import jax
import numpy as np
import optax
import pytest
from helpers.small_run import SMALL, assert_same, small_corpus, small_model

import charjax
from charjax import History, Interrupted, NotebookReporter, UserError
from charjax.config import FitOptions, SweepOptions, TrainConfig
from charjax.distributed.mesh import make_mesh
from charjax.progress import reporter as reporters
from charjax.runs.checkpoint_header import read_header
from charjax.runs.logs import read_metrics
from charjax.runs.model_file import read_info

CORPUS = small_corpus()
MODEL = small_model(CORPUS)
MESH = make_mesh(jax.devices()[:2])
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3))
# 24 steps per epoch, evaluated every 12.
fit = functools.partial(charjax.fit, MODEL, CORPUS, SMALL, mesh=MESH, progress=False)


def steps_of(out):
    return [evaluation.step for evaluation in read_metrics(out / "metrics.jsonl")]


# ---- optimizers and schedules


class Messages(reporters.NullReporter):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


def test_a_schedule_takes_the_place_of_the_configured_one(tmp_path):
    schedule = optax.linear_schedule(0.02, 0.0, 48)
    fit(learning_rate=schedule, out=tmp_path)
    rates = [evaluation.learning_rate for evaluation in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([float(schedule(step - 1)) for step in (12, 24, 36, 48)], rel=1e-5)
    options = read_info(tmp_path).options()
    assert options["learning_rate"] == options["schedule"] == "replaced by fit(learning_rate=...)"
    assert options["beta1"] == SMALL.beta1
    with pytest.raises(UserError, match=r"with fit\(learning_rate=\.\.\.\); pass the same learning_rate to resume it"):
        fit(out=tmp_path, resume=True, epochs=3)


@pytest.mark.slow
def test_a_constant_schedule_trains_like_a_constant_rate():
    ours = fit(learning_rate=lambda step: 0.01 + 0 * step)
    theirs = fit(learning_rate=0.01, schedule="constant", warmup_frac=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours.params, theirs.params)


def test_an_optimizer_of_optax_takes_the_place_of_adamw(tmp_path, caplog):
    state = fit(optimizer=OPTIMIZER, out=tmp_path / "whole")
    assert isinstance(optax.tree_utils.tree_get(state.opt_state, "mu"), dict)
    assert optax.tree_utils.tree_get(state.opt_state, "nu") is None
    evaluations = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert evaluations[-1].val_loss < evaluations[0].val_loss
    assert {evaluation.learning_rate for evaluation in evaluations} == {None}
    fit(optimizer=OPTIMIZER, out=tmp_path / "cut", epochs=1)
    with pytest.raises(UserError, match=r"was trained with fit\(optimizer=\.\.\.\); pass the same optimizer to resume"):
        fit(out=tmp_path / "cut", resume=True, epochs=2)
    with pytest.raises(UserError, match=r"with another optimizer, whose state has other arrays; pass"):
        fit(optimizer=optax.adam(0.01), out=tmp_path / "cut", resume=True, epochs=2)
    with caplog.at_level(logging.WARNING, logger="charjax"):
        assert int(fit(optimizer=OPTIMIZER, out=tmp_path / "cut", resume=True, epochs=2).step) == int(state.step)
    # The configured rate, which more epochs would raise, is not used.
    assert not caplog.records


def test_a_rollback_halves_the_updates_of_any_optimizer(tmp_path):
    """One window gives NaN, so that the run goes back once; then its text is mended."""
    train = CORPUS.train.copy()
    train[[(step - 1) * SMALL.seq_len + 5 for step in (20, 21, 22)]] = MODEL.vocab_size
    corpus = dataclasses.replace(CORPUS, train=train)
    said, options = Messages(), {"optimizer": OPTIMIZER, "checkpoint_every": 6, "steps_per_call": 1}
    with pytest.raises(UserError, match="after 5 rollbacks"):
        charjax.fit(MODEL, corpus, SMALL, mesh=MESH, out=tmp_path, reporter=said, **options)
    assert re.findall(r"with ([\d.]+) times", " ".join(said.texts))[:2] == ["0.5", "0.25"]


@pytest.mark.parametrize("given", [{"learning_rate": 0.1}, {"learning_rate": lambda step: 0.1}, {"clip_norm": 1.0}])
def test_an_optimizer_and_a_setting_of_adamw_exclude_each_other(given):
    with pytest.raises(UserError, match="is an AdamW setting, but optimizer replaces AdamW; pass only one of the two"):
        fit(optimizer=optax.sgd(0.1), **given)


def test_the_typed_options_are_those_of_the_configuration():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert fields == typing.get_type_hints(FitOptions).keys() | {"learning_rate"}
    without = {"learning_rate", "weight_decay", "patience", "checkpoint_every", "sample_context", "sample_length"}
    assert fields - without == typing.get_type_hints(SweepOptions).keys()


# ---- ending early


def test_a_callback_sees_each_evaluation_and_ends_the_training(tmp_path):
    seen = []

    def stop_at_24(evaluation, state):
        seen.append((evaluation.step, int(state.step), jax.tree.leaves(state.params)[0].shape))
        return evaluation.step == 24

    also = []
    state = fit(out=tmp_path, callbacks=[stop_at_24, lambda evaluation, _: also.append(evaluation.step)])
    assert [(step, of_state) for step, of_state, _ in seen] == [(12, 12), (24, 24)]
    assert also == [12, 24]
    assert int(state.step) == read_header(tmp_path).progress.step == 24
    # To the end, as if it had never stopped.
    assert_same(fit(out=tmp_path, resume=True), fit())


def test_a_run_that_a_callback_ends_between_two_checkpoints_is_saved(tmp_path):
    fit(out=tmp_path, callbacks=[lambda evaluation, _: evaluation.step == 36], checkpoint_every=24)
    assert read_header(tmp_path).progress.step == 36


class Scripted:
    """An evaluator that finds given losses."""

    def __init__(self, *losses):
        self.losses = iter(losses)

    def __call__(self, params):
        return next(self.losses)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.mark.parametrize(
    ("losses", "patience", "last"),
    [((3, 2, 2.5, 2.5, 1), 2, 48), ((3, 2, 2, 1, 1.5), 2, 60), ((1, 2, 3), 1, 24), ((1, 2, 3, 4, 5), None, 60)],
)
def test_patience_counts_evaluations_without_a_lower_loss(tmp_path, monkeypatch, losses, patience, last):
    monkeypatch.setattr("charjax.training.loop.make_evaluator", lambda *_, **__: Scripted(*losses))
    state = fit(out=tmp_path, epochs=2.5, patience=patience, checkpoint_every=60)
    assert int(state.step) == last
    assert steps_of(tmp_path) == list(range(12, last + 1, 12))
    if last < 60:
        # Resumed with the same patience it ends at once; with more it goes on.
        said = Messages()
        assert int(fit(out=tmp_path, resume=True, epochs=2.5, patience=patience, reporter=said).step) == last
        best = min(losses[: last // 12])
        assert said.texts[-1] == (
            f"stopped at step {last} of 60: no lower validation loss in {patience} evaluations (patience {patience}); "
            f"best validation loss {best:.4f} at step {12 + 12 * losses.index(best)}, whose model is kept; "
            "continue with --resume and a higher --patience"
        )
        monkeypatch.setattr("charjax.training.loop.make_evaluator", lambda *_, **__: Scripted(9, 9, 9))
        assert int(fit(out=tmp_path, resume=True, epochs=2.5, patience=patience + 1).step) == last + 12


def test_patience_counts_an_evaluation_at_the_end_that_is_off_the_beat(tmp_path, monkeypatch):
    monkeypatch.setattr("charjax.training.loop.make_evaluator", lambda *_, **__: Scripted(1, 2, 3))
    assert int(fit(epochs=1.25, patience=3).step) == 30


def test_ctrl_c_without_a_run_folder_leaves_what_was_learned():
    def interrupt(evaluation, _):
        if evaluation.step == 24:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"interrupted at step 24 of 48; .*sys\.last_value\.state") as raised:
        fit(callbacks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(raised.value.state, fit(callbacks=[lambda evaluation, _: evaluation.step == 24]))


# ---- what is shown and logged


def test_what_is_about_to_happen_is_said_first_and_progress_by_default(capsys):
    charjax.fit(MODEL, CORPUS, SMALL, mesh=MESH, sample_length=0)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:4] == [
        "model    2 layers of 12 units, 9,632 parameters, 128 characters",
        "text     3,024 characters to train on, 336 to validate",
        "steps    24 per epoch, 48 in total, each of 8 x 16 characters; few: a preset, a smaller batch "
        "or more epochs may learn more",
        "devices  2 x cpu",
    ]
    assert re.fullmatch(r"LSTM     \w+( \(\w+\))?, (float32|bfloat16) operands", lines[4])
    assert re.fullmatch(r"memory   about [\d.]+ kB for the training state and one batch", lines[5])
    assert [line.split()[4] for line in lines[6:]] == ["12", "24", "36", "48"]


def test_progress_can_be_silenced(capsys):
    fit()
    assert capsys.readouterr() == ("", "")


def test_a_program_without_streams_trains(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", None)
    charjax.fit(MODEL, CORPUS, SMALL, mesh=MESH, epochs=0.5)


def test_progress_is_shown_beside_a_reporter_if_asked_for(capsys):
    for progress, shown in ((None, False), (True, True)):
        history = History()
        charjax.fit(MODEL, CORPUS, SMALL, mesh=MESH, reporter=history, progress=progress)
        assert (f"{history.evaluations[-1].val_loss:.3f}" in capsys.readouterr().err) == shown


def test_a_notebook_gets_its_own_reporter(monkeypatch):
    pages = []
    monkeypatch.setattr(reporters, "in_notebook", lambda: True)
    monkeypatch.setattr("charjax.progress.notebook._shower", lambda: pages.append)
    assert isinstance(reporters.make_reporter(), NotebookReporter)
    charjax.fit(MODEL, CORPUS, SMALL, mesh=MESH)
    assert "step 48 of 48" in pages[-1]
    assert pages[-1].count("<polyline") == 2


def test_trackers_get_every_measurement(tmp_path):
    logged = []

    class Tracker:
        def log(self, step, values):
            logged.append((step, values))

    fit(out=tmp_path, trackers=[Tracker()])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **values} for step, values in logged] == [
        {name: value for name, value in line.items() if value is not None} for line in lines
    ]
    assert lines[-1]["chars_seen"] == 2 * len(CORPUS.train)
    assert all(0 < line["grad_norm"] < 10 for line in lines)
    assert [line["learning_rate"] for line in lines] == sorted((line["learning_rate"] for line in lines), reverse=True)


def test_the_norm_is_the_mean_over_all_steps_since_the_last_evaluation(tmp_path):
    fit(out=tmp_path / "one", steps_per_call=1)
    fit(out=tmp_path / "many", steps_per_call=12)
    ones, many = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "many"))
    assert [e.grad_norm for e in ones] == pytest.approx([e.grad_norm for e in many], rel=1e-4)


def test_a_state_is_shown_in_one_line():
    shown = repr(fit())
    assert "\n" not in shown
    assert shown.startswith("TrainState(step=48, cursor=0, skipped=0, params=<9,632 numbers in 8 arrays>")
    assert len(shown) < 300
