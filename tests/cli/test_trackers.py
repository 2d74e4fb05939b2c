"""--tensorboard and --tracker."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers.small_run import TEXT

from charjax import TensorBoard
from charjax.cli.main import main
from charjax.runs.logs import read_metrics

OPTIONS = ["--hidden-dim=8", "--batch-size=8", "--seq-len=16", "--epochs=2", "--sample-length=0"]
TRACKER = """
class Printed:
    def log(self, step, values):
        with open("tracked.txt", "a") as file:
            print(step, values["val_loss"], file=file)
nothing = 5
tracker = Printed()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a text and a module of trackers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "mine.py").write_text(TRACKER)
    yield tmp_path
    sys.modules.pop("mine", None)


def train(*more):
    return main(["train", "text.txt", "--out", "run", *OPTIONS, *more])


def test_tensorboard_can_read_the_event_file(folder, monkeypatch):
    boards = []

    class Board(TensorBoard):
        def __init__(self, folder):
            super().__init__(folder)
            boards.append(self)

    monkeypatch.setattr("charjax.cli.trackers.TensorBoard", Board)
    assert train("--tensorboard") == 0
    boards[0].close()
    (path,) = (folder / "run" / "tensorboard").iterdir()
    expected = {e.step: e for e in read_metrics(folder / "run" / "metrics.jsonl")}
    found = scalars(path.read_bytes())
    assert {(step, name) for step, name, _ in found} >= {
        (step, name) for step in expected for name in ("val_loss", "learning_rate", "grad_norm", "chars_seen")
    }
    for step, name, value in found:
        assert value == pytest.approx(getattr(expected[step], name), rel=1e-6)
    # A resumed run goes on logging, unasked.
    assert train("--resume", "--epochs=3") == 0
    boards[1].close()
    logged = {step for file in (folder / "run" / "tensorboard").iterdir() for step, *_ in scalars(file.read_bytes())}
    assert logged == {e.step for e in read_metrics(folder / "run" / "metrics.jsonl")}


def scalars(content):
    """Reads an event file as TensorBoard does -> (step, name, value) of every scalar."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    events = []
    while content:
        size = int.from_bytes(content[:8], "little")
        record, checksum = content[12 : 12 + size], content[12 + size : 16 + size]
        assert int.from_bytes(checksum, "little") == masked_crc32c(record)
        events.append(Event.FromString(record))
        content = content[16 + size :]
    return [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]


def test_weights_and_biases_records_a_run_by_the_example_of_the_docs(folder, monkeypatch):
    """Offline, into a file; each measurement stands there as JSON."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (example,) = (block for block in blocks if "import wandb" in block)
    (folder / "my_trackers.py").write_text(example)
    command = [sys.executable, "-m", "charjax", "train", "text.txt", "--out", "run", *OPTIONS]
    subprocess.run([*command, "--tracker", "my_trackers:Wandb"], check=True, capture_output=True)
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    content = path.read_bytes()
    for evaluation in read_metrics(folder / "run" / "metrics.jsonl"):
        for value in (evaluation.val_loss, evaluation.learning_rate):
            assert json.dumps(value).encode() in content


@pytest.mark.parametrize("name", ["Printed", "tracker"])
def test_a_class_or_an_object_of_a_module_here_tracks(folder, name):
    assert train("--tracker", f"mine:{name}") == 0
    tracked = [line.split() for line in (folder / "tracked.txt").read_text().splitlines()]
    expected = [(e.step, e.val_loss) for e in read_metrics(folder / "run" / "metrics.jsonl")]
    assert [(int(step), float(loss)) for step, loss in tracked] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "--tracker must be MODULE:OBJECT, e.g. my_trackers:Wandb, not mine"),
        ("mine:", "--tracker must be MODULE:OBJECT"),
        ("missing:Tracker", "--tracker missing:Tracker cannot be imported: No module named 'missing'"),
        ("mine:Missing", "--tracker mine:Missing cannot be imported: module 'mine' has no attribute 'Missing'"),
        ("mine:nothing", "--tracker mine:nothing has no log(step, values) method"),
    ],
)
def test_a_tracker_that_is_none_is_refused(folder, capsys, name, message):
    assert train("--tracker", name) == 2
    assert f"charjax: error: {message}" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_tensorboard_without_its_package_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert train("--tensorboard") == 2
    assert 'pip install "charjax[tensorboard]"' in capsys.readouterr().err
    assert not (folder / "run").exists()
