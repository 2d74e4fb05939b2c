"""fit: training as a user sees it; a resumed run ends exactly like one that was never interrupted."""

import contextlib
import dataclasses
import functools
import gc
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.compilations import compilations
from helpers.small_run import SMALL, assert_same, small_corpus, small_model

import charjax
from charjax import load_model
from charjax.distributed.mesh import make_mesh, make_training_mesh
from charjax.errors import Interrupted, UserError
from charjax.host.cpu import available_cores
from charjax.model import CharLSTM
from charjax.progress.reporter import NullReporter
from charjax.runs.checkpoint import read_header
from charjax.runs.logs import read_metrics
from charjax.training.evaluate import evaluate
from charjax.training.optimizer import make_optimizer, with_rate_scale
from charjax.training.plan import training_layout

CORPUS = small_corpus()
MODEL = small_model(CORPUS)
fit = functools.partial(charjax.fit, mesh=make_mesh(jax.devices()[:2]))


class Recorder(NullReporter):
    """Keeps what fit reports, and calls an action at a step."""

    def __init__(self, at_step=None, action=None):
        self.at_step, self.action = at_step, action
        self.starts, self.updates, self.evaluations, self.messages = [], [], [], []

    def start(self, *args):
        self.starts.append(args)

    def update(self, step, loss):
        self.updates.append((step, loss))
        if self.at_step is not None and step >= self.at_step:
            self.at_step = None
            self.action()

    def evaluation(self, evaluation, sample_text=""):
        self.evaluations.append((evaluation, sample_text))

    def message(self, text):
        self.messages.append(text)


def steps_of(recorder):
    return [evaluation.step for evaluation, _ in recorder.evaluations]


def test_it_learns_and_reports():
    recorder = Recorder()
    state = fit(MODEL, CORPUS, SMALL, epochs=12, eval_every=None, reporter=recorder)
    (total, first, chars_per_step, epochs) = recorder.starts[0]
    assert (first, chars_per_step, epochs) == (0, 8 * 16, 12)
    assert int(state.step) == total == 12 * -(-(len(CORPUS.train) - 1) // (8 * 16))
    assert steps_of(recorder) == [total // 12 * epoch for epoch in range(1, 13)]
    losses = [evaluation.val_loss for evaluation, _ in recorder.evaluations]
    assert losses[-1] < 0.6 * losses[0]
    assert recorder.updates[-1][0] == total
    assert all(len(text) == 20 for _, text in recorder.evaluations)


def test_the_reported_loss_is_that_of_the_state():
    recorder = Recorder()
    state = fit(MODEL, CORPUS, SMALL, reporter=recorder)
    evaluation, _ = recorder.evaluations[-1]
    # On the devices that fit used: on others, float32 sums are rounded differently.
    again = evaluate(MODEL, state.params, CORPUS.validation, mesh=make_training_mesh(SMALL.batch_size))
    assert evaluation.val_loss == pytest.approx(again, abs=1e-7)
    assert evaluation.epoch == SMALL.epochs


def test_evaluating_and_sampling_do_not_affect_training():
    often = fit(MODEL, CORPUS, SMALL, eval_every=3)
    rarely = fit(MODEL, CORPUS, SMALL, eval_every=None, sample_length=0)
    assert_same(often.params, rarely.params)
    assert_same(often.carry, rarely.carry)


def test_steps_per_call_do_not_matter():
    assert_same(fit(MODEL, CORPUS, SMALL, steps_per_call=1), fit(MODEL, CORPUS, SMALL, steps_per_call=7))


def test_eight_devices_train_like_one():
    losses = []
    for devices in (jax.devices(), jax.devices()[:1]):
        recorder = Recorder()
        charjax.fit(MODEL, CORPUS, SMALL, mesh=make_mesh(devices), reporter=recorder)
        losses.append([(e.train_loss, e.val_loss) for e, _ in recorder.evaluations])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def test_a_run_folder_holds_everything(tmp_path):
    recorder = Recorder()
    fit(MODEL, CORPUS, SMALL, out=tmp_path / "deep" / "run", reporter=recorder)
    run = tmp_path / "deep" / "run"
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "metrics.jsonl",
        "samples.txt",
        "model.safetensors",
        "config.json",
        "vocab.json",
    }
    assert read_metrics(run / "metrics.jsonl") == [evaluation for evaluation, _ in recorder.evaluations]
    samples = (run / "samples.txt").read_text()
    assert all(text in samples for _, text in recorder.evaluations)
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["hidden_dim"] == 12
    assert config["train"] == dataclasses.asdict(SMALL)
    best = min((evaluation for evaluation, _ in recorder.evaluations), key=lambda e: e.val_loss)
    header = read_header(run)
    assert (header.progress.best_step, header.progress.best_val_loss) == (best.step, best.val_loss)
    model, params, vocab = load_model(run)
    assert (model, vocab) == (MODEL, CORPUS.vocab)
    assert evaluate(model, params, CORPUS.validation) == pytest.approx(best.val_loss, abs=1e-6)


def test_the_best_state_is_saved_even_if_no_checkpoint_is_due(tmp_path):
    fit(MODEL, CORPUS, SMALL, out=tmp_path, eval_every=5, checkpoint_every=1000)
    header = read_header(tmp_path)
    assert (tmp_path / "checkpoints" / str(header.progress.best_step)).is_dir()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder and the last state of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("fit") / "whole"
    return out, fit(MODEL, CORPUS, SMALL, out=out)


@pytest.mark.parametrize(
    ("signum", "at_step"), [(signal.SIGINT, 1), (signal.SIGTERM, 7), (signal.SIGINT, 24), (signal.SIGTERM, 40)]
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, whole, signum, at_step):
    out, expected = whole
    stopped = Recorder(at_step, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(Interrupted, match="continue with --resume") as interruption:
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "run", reporter=stopped)
    assert interruption.value.signum == signum
    saved = read_header(tmp_path / "run").progress.step
    assert saved >= at_step
    resumed = Recorder()
    state = fit(MODEL, CORPUS, SMALL, out=tmp_path / "run", resume=True, reporter=resumed)
    assert resumed.starts[0][1] == saved
    assert_same(state, expected)
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "run", out))
    assert [(e.step, e.val_loss) for e in ours] == [(e.step, e.val_loss) for e in theirs]
    # The calls differ, and so does the rounding of their sums.
    assert [e.train_loss for e in ours] == pytest.approx([e.train_loss for e in theirs], rel=1e-6)
    assert (tmp_path / "run" / "samples.txt").read_text() == (out / "samples.txt").read_text()


def test_a_finished_run_may_be_given_more_epochs(tmp_path, caplog):
    fit(MODEL, CORPUS, SMALL, out=tmp_path)
    again = Recorder()
    fit(MODEL, CORPUS, SMALL, out=tmp_path, resume=True, reporter=again)
    assert again.updates == []
    assert again.messages == ["resuming at step 48 of 48; to train longer, raise --epochs"]
    assert "learning rate" not in caplog.text
    more = fit(MODEL, CORPUS, SMALL, out=tmp_path, resume=True, epochs=3, reporter=again)
    assert again.messages[1] == "resuming at step 48 of 72"
    assert "steps    24 per epoch, 72 in total" in again.messages[2]
    assert "the learning rate rises from 0.0001 to " in caplog.text
    assert int(more.step) == read_header(tmp_path).progress.step
    assert json.loads((tmp_path / "config.json").read_text())["train"]["epochs"] == 3


def test_a_run_longer_than_asked_for_is_refused_and_left_as_it_is(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    (run / "model.safetensors").write_text("to be written again, if the run is resumed")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="more than --epochs 1; raise --epochs to resume it"):
        fit(MODEL, CORPUS, SMALL, out=run, resume=True, epochs=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_if_the_latest_checkpoint_is_damaged_the_previous_one_is_resumed(tmp_path, whole, caplog):
    out, expected = whole
    shutil.copytree(out, tmp_path / "run")
    latest = max((tmp_path / "run" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    (latest / "_CHECKPOINT_METADATA").write_text("{")
    with caplog.at_level(logging.WARNING, logger="charjax"):
        state = fit(MODEL, CORPUS, SMALL, out=tmp_path / "run", resume=True)
    assert caplog.text.count(f"checkpoint {latest.name}") == 1
    assert_same(state, expected)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"hidden_dim": 13}}, "--hidden-dim 12, not 13"),
        ({"model": {"hidden_layers": 1}}, "--hidden-layers 2, not 1"),
        ({"model": {"dropout": 0.0}}, "--dropout 0.2, not 0.0"),
        ({"corpus": {"train_frac": 0.8}}, "--train-frac 0.9, not 0.8"),
        ({"corpus": {"vocab": "bytes"}}, "--vocab ascii, not bytes"),
        ({"train": {"batch_size": 16}}, "--batch-size 8, not 16"),
        ({"train": {"seq_len": 8}}, "--seq-len 16, not 8"),
        ({"train": {"seed": 1}}, "--seed 0, not 1"),
    ],
)
def test_resuming_with_another_setting_names_it(whole, changes, message):
    out, _ = whole
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    corpus = small_corpus(**changes.get("corpus", {}))
    model = small_model(corpus, **changes.get("model", {}))
    with pytest.raises(UserError, match=message):
        fit(model, corpus, SMALL, out=out, resume=True, **changes.get("train", {}))
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before


def test_another_implementation_may_resume(tmp_path):
    fit(small_model(CORPUS, implementation="scan"), CORPUS, SMALL, out=tmp_path, epochs=1)
    fit(small_model(CORPUS, implementation="flax"), CORPUS, SMALL, out=tmp_path, epochs=1, resume=True)


def spoilt(*steps):
    """Returns the corpus with an id beyond the vocabulary, which makes the loss NaN, in the windows of some steps."""
    train = CORPUS.train.copy()
    for step in steps:
        train[(step - 1) * SMALL.seq_len + 5] = MODEL.vocab_size
    return dataclasses.replace(CORPUS, train=train)


class FragileLSTM(CharLSTM):
    """A model whose logits become NaN once one is large, as in training that diverges."""

    def __call__(self, ids, carry, **options):
        logits, carry = super().__call__(ids, carry, **options)
        return jnp.where(jnp.abs(logits).max() > 60, jnp.nan, logits), carry


FRAGILE = FragileLSTM(CORPUS.vocab.size, hidden_dim=12, hidden_layers=2, dropout=0.2)
# A rate at which it diverges, also at one half.
DIVERGING = {"learning_rate": 10.0, "schedule": "constant", "warmup_frac": 0.0, "checkpoint_every": 4}


def test_steps_that_are_not_finite_are_skipped_counted_and_reported(tmp_path):
    recorder = Recorder()
    state = fit(MODEL, spoilt(3, 4, 8), SMALL, out=tmp_path, epochs=1, steps_per_call=1, reporter=recorder)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert recorder.messages[1:] == [
        f"skipped a step (now at step {step}): non-finite loss or gradient" for step in (3, 4, 8)
    ]
    evaluations = read_metrics(tmp_path / "metrics.jsonl")
    assert [evaluation.skipped_steps for evaluation in evaluations][:2] == [3, 0]
    assert all(math.isfinite(evaluation.train_loss) for evaluation in evaluations)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """Returns the folder, the last state and the recorder of a run that went back several times."""
    out, recorder = tmp_path_factory.mktemp("fit") / "diverged", Recorder()
    return out, fit(FRAGILE, CORPUS, SMALL, out=out, reporter=recorder, **DIVERGING), recorder


def test_a_diverged_run_goes_back_with_a_lower_rate(diverged):
    out, state, recorder = diverged
    rollbacks = [text for text in recorder.messages if "going back" in text]
    assert rollbacks
    assert "non-finite loss or gradient in 3 steps in a row, up to step" in rollbacks[0]
    assert rollbacks[0].endswith("with 0.5 times the learning rate")
    assert int(state.step) == read_header(out).progress.step
    assert read_header(out).progress.rollbacks == len(rollbacks)
    assert steps_of(recorder)[-1] == int(state.step)
    assert [e.step for e in read_metrics(out / "metrics.jsonl")] == sorted({*steps_of(recorder)})
    assert len(recorder.starts) == 1 + len(rollbacks)
    assert math.isfinite(evaluate(MODEL, load_model(out)[1], CORPUS.validation))


def test_neither_a_rollback_nor_a_second_run_compiles_anything(tmp_path):
    model = small_model(CORPUS, hidden_dim=7, hidden_layers=1)
    corpus, options = spoilt(*range(20, 24)), {"checkpoint_every": 6, "steps_per_call": 1}
    compiled_by = []
    recorder = Recorder()
    with compilations() as compiled:
        recorder.message = lambda text: compiled_by.extend([len(compiled)] if "going back" in text else [])
        with pytest.raises(UserError, match="after 5 rollbacks"):
            fit(model, corpus, SMALL, out=tmp_path / "first", reporter=recorder, **options)
    assert len(compiled_by) == 5
    assert 0 < compiled_by[0] == len(compiled), compiled[compiled_by[0] :]
    with compilations() as compiled, pytest.raises(UserError, match="after 5 rollbacks"):
        fit(model, corpus, SMALL, out=tmp_path / "second", seed=1, **options)
    assert compiled == []


def test_a_run_leaves_neither_text_nor_state_in_memory():
    corpus = small_corpus()
    state = fit(MODEL, corpus, SMALL, epochs=1)
    text, bias = weakref.ref(corpus.train), weakref.ref(state.params["head"]["bias"])
    del corpus, state
    gc.collect()
    assert text() is None
    assert bias() is None


def test_a_run_started_over_leftovers_keeps_its_checkpoints_when_it_goes_back(tmp_path):
    """The files of a run that was killed at its start are removed once, and not again by a rollback."""
    fit(MODEL, CORPUS, SMALL, out=tmp_path / "other", epochs=1)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "other" / "config.json", tmp_path / "run" / "config.json")
    with pytest.raises(UserError, match="after 5 rollbacks"):
        fit(MODEL, spoilt(*range(20, 24)), SMALL, out=tmp_path / "run", checkpoint_every=6, steps_per_call=1)
    assert read_header(tmp_path / "run").progress.best_step == 12
    assert [evaluation.step for evaluation in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [12]


def test_a_run_whose_last_steps_are_skipped_is_saved_at_its_end(tmp_path):
    fit(MODEL, spoilt(23, 24), SMALL, out=tmp_path, epochs=1, steps_per_call=1)
    assert read_header(tmp_path).progress.step == 24


def test_the_lower_rate_is_kept_when_the_run_is_resumed(tmp_path, diverged):
    _, expected, _ = diverged
    recorder = Recorder(at_step=40, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit(FRAGILE, CORPUS, SMALL, out=tmp_path / "cut", reporter=recorder, steps_per_call=1, **DIVERGING)
    assert read_header(tmp_path / "cut").progress.rollbacks
    assert_same(fit(FRAGILE, CORPUS, SMALL, out=tmp_path / "cut", resume=True, **DIVERGING), expected)


def test_a_checkpoint_that_diverges_again_is_given_up_for_the_best(tmp_path):
    """Windows 20 to 23 give NaN, so training diverges every time before the second evaluation."""
    corpus = spoilt(*range(20, 24))
    recorder = Recorder()
    with pytest.raises(
        UserError, match=r"up to step \d+, after 5 rollbacks; the last good checkpoint is kept in .*; try a lower"
    ):
        fit(MODEL, corpus, SMALL, out=tmp_path, checkpoint_every=6, steps_per_call=1, reporter=recorder)
    back_to = [int(text.split("checkpoint at step ")[1].split(",")[0]) for text in recorder.messages if "going" in text]
    assert back_to == [18, 12, 12, 12, 12]
    assert read_header(tmp_path).progress.best_step == 12
    assert (tmp_path / "checkpoints" / "12").is_dir()


def test_a_loss_that_stays_nan_ends_the_run_and_keeps_the_checkpoints(tmp_path):
    with pytest.raises(
        UserError, match=r"non-finite .* the last good checkpoint is kept in .*; .*--learning-rate \(currently 1e"
    ):
        fit(MODEL, CORPUS, SMALL, out=tmp_path, learning_rate=1e9, clip_norm=1e9, schedule="constant", warmup_frac=0)
    _, params, _ = load_model(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_without_a_run_folder_a_diverged_run_ends_at_once():
    with pytest.raises(
        UserError, match=r"non-finite loss or gradient in 3 steps in a row, up to step 5; try a lower --learning-rate"
    ):
        fit(MODEL, spoilt(3, 4, 5), SMALL, steps_per_call=1)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """An update can overflow although loss and gradient are finite; here every one does."""

    def overflowing(*args, **options):
        return with_rate_scale(optax.chain(make_optimizer(*args, **options), optax.scale(math.inf)))

    monkeypatch.setattr("charjax.training.loop.make_optimizer", overflowing)
    with pytest.raises(UserError, match="the parameters are not finite at step 1, after 5 rollbacks"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path, checkpoint_every=1, steps_per_call=1)
    assert read_header(tmp_path).progress.step == 0


def test_a_validation_loss_that_is_not_finite_rolls_back_too(tmp_path):
    validation = CORPUS.validation.copy()
    validation[9] = MODEL.vocab_size
    corpus = dataclasses.replace(CORPUS, validation=validation)
    with pytest.raises(UserError, match="the validation loss is nan at step 12, after 5 rollbacks"):
        fit(MODEL, corpus, SMALL, out=tmp_path)


def test_microbatches_train_like_the_whole_batch(tmp_path):
    whole, parts = Recorder(), Recorder()
    fit(MODEL, CORPUS, SMALL, reporter=whole)
    fit(MODEL, CORPUS, SMALL, microbatches=2, reporter=parts)
    losses = [[(e.train_loss, e.val_loss) for e, _ in recorder.evaluations] for recorder in (whole, parts)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)
    with pytest.raises(UserError, match=r"batch_size 8 cannot be split evenly over 2 devices x 3 microbatches"):
        fit(MODEL, CORPUS, SMALL, microbatches=3)


def refused(tmp_path, message, **options):
    with pytest.raises(UserError, match=message):
        fit(**{"model": MODEL, "corpus": CORPUS, "config": SMALL, "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_is_named_with_the_nearest():
    with pytest.raises(TypeError, match=r"^fit has no option 'batch_siz'; did you mean batch_size[?]$"):
        fit(MODEL, CORPUS, SMALL, batch_siz=16)


def test_a_sweep_that_catches_exceptions_ends_when_it_is_interrupted(tmp_path):
    reporter = Recorder(at_step=1, action=lambda: os.kill(os.getpid(), signal.SIGINT))

    def sweep():
        for run in ("first", "second"):
            with contextlib.suppress(Exception):
                fit(MODEL, CORPUS, SMALL, out=tmp_path / run, reporter=reporter)

    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(tmp_path):
    refused(tmp_path, "batch_size 5 cannot be split evenly over 2 devices", batch_size=5)


def test_a_text_too_short_is_refused(tmp_path):
    refused(tmp_path, "the largest that fit: --batch-size 8 or --seq-len", seq_len=376, batch_size=16)


def test_a_model_for_another_vocabulary_is_refused(tmp_path):
    refused(tmp_path, "vocab_size is 7, but the text's is 128", model=small_model(CORPUS).clone(vocab_size=7))


def test_a_sample_context_outside_the_vocabulary_is_refused(tmp_path):
    refused(tmp_path, "'é'", sample_context="café")


def test_resuming_nothing_is_refused(tmp_path):
    refused(tmp_path, "does not exist", resume=True)
    refused(tmp_path, "pass its folder as out", out=None, resume=True)


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists and is not a run that can be resumed; choose"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_as_run_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file; choose a folder for --out"):
        fit(MODEL, CORPUS, SMALL, out=tmp_path / "run")


def test_an_empty_folder_is_accepted(tmp_path):
    fit(MODEL, CORPUS, SMALL, out=tmp_path, epochs=1)
    assert (tmp_path / "config.json").is_file()


def test_every_core_is_a_device_unless_the_user_chooses():
    alone = "from charjax.distributed.mesh import use_all_cores; use_all_cores()"
    before_fit = "from charjax import CharLSTM, ModelConfig; CharLSTM.from_config(ModelConfig(), 128)"

    def count(setup=alone, **environment):
        environment = {**os.environ, "XLA_FLAGS": "", **environment}
        command = [sys.executable, "-c", f"import jax; {setup}; print(jax.device_count())"]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert count() == count(before_fit) == available_cores()
    assert count(JAX_NUM_CPU_DEVICES="3") == 3
    assert count(XLA_FLAGS="--xla_force_host_platform_device_count=5") == 5


def test_more_steps_than_int32_can_count_are_refused(tmp_path):
    refused(tmp_path, "999999999 epochs is .* steps, which exceeds the limit of .*; lower --epochs to at most 89",
            epochs=999999999)  # fmt: skip


def test_training_may_end_within_an_epoch():
    recorder = Recorder()
    state = fit(MODEL, CORPUS, SMALL, epochs=1.5, eval_every=None, sample_length=0, reporter=recorder)
    per_epoch = training_layout(CORPUS, SMALL).windows
    assert [evaluation.step for evaluation, _ in recorder.evaluations] == [per_epoch, round(1.5 * per_epoch)]
    assert int(state.step) == round(1.5 * per_epoch)


def test_every_evaluation_reports_the_speed(tmp_path):
    recorder = Recorder()
    fit(MODEL, CORPUS, SMALL, epochs=3, eval_every=None, steps_per_call=1000, sample_length=0, reporter=recorder)
    assert len(recorder.evaluations) == 3
    assert all(evaluation.chars_per_second > 0 for evaluation, _ in recorder.evaluations)
