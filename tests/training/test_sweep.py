"""sweep: each member learns what its own fit would, on however many devices; the best one is kept as a run."""

import functools
import json
import math
import os
import signal
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
from helpers.compilations import compilations
from helpers.small_run import SMALL, small_corpus, small_model

import charjax
from charjax import History, evaluate, fit, load_model
from charjax.distributed.mesh import make_mesh
from charjax.errors import Interrupted, UserError
from charjax.host import memory
from charjax.metrics import Evaluation
from charjax.progress.reporter import NullReporter
from charjax.runs.logs import read_metrics
from charjax.runs.model_file import read_run
from charjax.training import population
from charjax.training.population import Setting
from charjax.training.sweep_result import SweepMember, SweepResult

CORPUS = small_corpus()
MODEL = small_model(CORPUS, dropout=0.0)
TWO = make_mesh(jax.devices()[:2])
LAST_SEED = 2**32 - 1
sweep = functools.partial(charjax.sweep, MODEL, CORPUS, SMALL, mesh=TWO)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The result and the folder of a sweep over everything."""
    out = tmp_path_factory.mktemp("sweep") / "best"
    varied = {"learning_rate": [0.003, 0.01], "dropout": [0, 0.3], "weight_decay": [0.01, 0.5]}
    return sweep(**varied, seeds=2, seed=LAST_SEED - 1, out=out), out


def losses(evaluations):
    return np.array([(evaluation.train_loss, evaluation.val_loss) for evaluation in evaluations])


def member_of(result, **setting):
    (found,) = (m for m in result.members if setting.items() <= m.setting._asdict().items())
    return found


def assert_equal_but_for_rounding(member, expected):
    assert [e.step for e in member.evaluations] == [e.step for e in expected]
    np.testing.assert_allclose(losses(member.evaluations), losses(expected), rtol=2e-6)


@pytest.mark.parametrize(
    "setting", [Setting(0.003, 0.0, 0.01, LAST_SEED - 1), Setting(0.01, 0.3, 0.5, LAST_SEED)], ids=["first", "last"]
)
def test_a_member_equals_its_own_fit(swept, setting):
    assert swept[0].members[0 if setting.seed < LAST_SEED else -1].setting == setting
    history, own = History(), {name: value for name, value in setting._asdict().items() if name != "dropout"}
    fit(MODEL.clone(dropout=setting.dropout), CORPUS, SMALL, **own, mesh=TWO, reporter=history)
    assert_equal_but_for_rounding(member_of(swept[0], **setting._asdict()), history.evaluations)


def test_the_best_member_is_kept_as_a_run(swept):
    result, out = swept
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors", "sweep.json", "sweep.svg", "vocab.json",
    ]  # fmt: skip
    assert list(out.parent.iterdir()) == [out]
    best = result.best
    assert best.val_loss == min(e.val_loss for member in result.members for e in member.evaluations)
    model, params, _ = load_model(out)
    jax.tree.map(np.testing.assert_array_equal, params, result.params)
    assert evaluate(model, params, CORPUS.validation) == pytest.approx(best.val_loss, abs=1e-6)
    info, progress = read_run(out)
    assert (info.train.learning_rate, info.model.dropout) == (best.setting.learning_rate, best.setting.dropout)
    assert (info.train.weight_decay, info.train.seed) == (best.setting.weight_decay, best.setting.seed)
    assert (progress.best_val_loss, progress.epoch) == (best.val_loss, 2)
    assert tuple(read_metrics(out / "metrics.jsonl")) == best.evaluations


def test_the_files_of_a_sweep_have_all_members(swept):
    result, out = swept
    members = json.loads((out / "sweep.json").read_text())["members"]
    assert [Setting(**{name: member[name] for name in Setting._fields}) for member in members] == [
        member.setting for member in result.members
    ]
    assert [m["evaluations"][-1]["val_loss"] for m in members] == [m.evaluations[-1].val_loss for m in result.members]
    picture = ET.parse(out / "sweep.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{svg}circle")) == 16
    texts = {text.text for text in picture.findall(f"{svg}text")}
    assert {"learning rate", "0.003", "0.01", "dropout 0.3, weight decay 0.5"} <= texts


@pytest.fixture
def three(monkeypatch):
    """A sweep of three members, on two devices, which read their text in chunks."""
    monkeypatch.setattr(population, "text_budgets", lambda *_: (4000, 700))
    return functools.partial(sweep, seed=LAST_SEED - 1)


class Recorder(NullReporter):
    def __init__(self):
        self.messages, self.started, self.evaluations = [], None, []

    def start(self, *args):
        self.started = args

    def evaluation(self, evaluation, sample_text=""):
        self.evaluations.append(evaluation)

    def message(self, text):
        self.messages.append(text)


def test_a_member_that_diverges_does_not_stop_the_others(swept, three):
    recorder = Recorder()
    result = three(learning_rate=[0.01, 1e9, 0.003], reporter=recorder)
    assert [member.diverged for member in result.members] == [False, True, False]
    for rate in (0.01, 0.003):
        setting = {"learning_rate": rate, "dropout": 0, "weight_decay": 0.01, "seed": LAST_SEED - 1}
        assert_equal_but_for_rounding(member_of(result, **setting), member_of(swept[0], **setting).evaluations)
    assert result.best.setting.learning_rate == 0.01
    (message,) = recorder.messages
    assert message.startswith(
        "learning rate 1000000000, dropout 0, weight decay 0.01, seed 4294967294: loss or gradient not"
    )
    assert recorder.started[0] == recorder.evaluations[-1].step == 48
    assert recorder.started[2] == 3 * 8 * 16
    assert recorder.evaluations[-1] == result.best.evaluations[-1]
    assert result.members[1].val_loss == math.inf


def test_if_all_diverge_it_says_so_and_a_second_sweep_compiles_nothing(three, tmp_path):
    with pytest.raises(UserError, match=r"all models diverged, .*; try lower learning rates"):
        three(learning_rate=[1e9, 9e8, 8e8], out=tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    with compilations() as compiled, pytest.raises(UserError, match="all models diverged"):
        three(learning_rate=[1e9, 9e8, 7e8])
    assert not compiled


def test_an_interrupted_sweep_leaves_nothing(three, tmp_path):
    recorder = Recorder()
    recorder.update = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="interrupted at step 1 of 48; nothing was kept") as raised:
        three(learning_rate=[0.01, 0.02, 0.03], out=tmp_path / "best", reporter=recorder)
    assert raised.value.signum == signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_members_trained_side_by_side_as_on_accelerators(swept, monkeypatch):
    monkeypatch.setattr(population, "members_at_once", lambda members, _: members)
    options = {"learning_rate": 0.01, "dropout": 0.3, "weight_decay": 0.5, "seed": LAST_SEED - 1}
    result = sweep(**options, seeds=2, mesh=make_mesh(jax.devices()[:1]))
    for member in result.members:
        assert_equal_but_for_rounding(member, member_of(swept[0], **member.setting._asdict()).evaluations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": []}, "learning_rate must have at least one value, not an empty list"),
        ({"dropout": [0.1, 0.2, 0.1]}, "dropout contains 0.1 more than once; remove the duplicate"),
        ({"learning_rate": [0.1, -1]}, "learning_rate must be above 0 and finite, not -1"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1, not 1"),
        ({"weight_decay": "much"}, "weight_decay must be at least 0 and finite, not 'much'"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
        ({"seed": LAST_SEED, "seeds": 2}, "seed must be a whole number from 0 to 4294967295, not 4294967296"),
        ({"batch_size": 4000}, "the largest that fit: "),
        ({"batch_size": 8, "microbatches": 3}, "batch_size 8 cannot be split evenly over 3 microbatches"),
        ({"out": __file__}, "is a file; choose a folder for --out"),
        ({"out": os.path.dirname(__file__)}, "already exists and is not empty; choose another --out"),
        ({"out": f"{__file__}/run"}, "cannot be written .*; nothing was kept; choose another --out"),
    ],
)
def test_what_cannot_be_swept(options, message):
    with pytest.raises(UserError, match=message):
        sweep(**options)


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(TypeError, match=r"sweep has no option .dropouts.; did you mean dropout\?"):
        sweep(dropouts=[0.1])


def test_too_many_models_for_the_memory(monkeypatch):
    monkeypatch.setattr(memory, "system_memory", lambda: 10**6)
    with pytest.raises(UserError, match=r"training 100 models at once needs about .*; reduce the number of values, --"):
        sweep(seeds=100)


def test_the_table_has_the_best_mean_first_and_what_diverged_last():
    def member(rate, seed, *losses):
        evaluations = tuple(
            Evaluation(step=n, epoch=n, train_loss=2.0, val_loss=loss, chars_per_second=None, elapsed_seconds=1.0)
            for n, loss in enumerate(losses)
        )
        setting = Setting(learning_rate=rate, dropout=0.25, weight_decay=0.0, seed=seed)
        return SweepMember(setting=setting, evaluations=evaluations, diverged=not losses)

    members = [member(0.1, 0, 3.0, 2.0, 2.5), member(0.1, 1, 1.0), member(0.01, 0, 1.5, 1.25), member(0.01, 1, 1.25)]
    result = SweepResult(model=MODEL, params={}, members=(*members, member(0.2, 0, 0.5), member(0.2, 1)))
    assert "params" not in repr(result)
    assert result.table().splitlines() == [
        "learning rate  dropout  weight decay  val loss  spread  lowest  diverged",
        "         0.01     0.25             0    1.2500  0.0000  1.2500    0 of 2",
        "          0.1     0.25             0    1.5000  0.7071  1.0000    0 of 2",
        "          0.2     0.25             0    0.5000       -  0.5000    1 of 2",
    ]
    assert result.picture().count("<circle") == 5
