"""Coordination of processes, tested in one: addresses, agreement, settings, how a process exits, and the mesh."""

import contextlib
import json
import socket

import jax
import pytest

from charjax.data import corpus as corpus_module
from charjax.data.corpus import Corpus
from charjax.distributed import processes
from charjax.distributed.mesh import make_mesh, make_training_mesh
from charjax.distributed.processes import (
    Council,
    FailedElsewhereError,
    Votes,
    check_same,
    from_main,
    least_of_all,
    leaving_together,
    together,
)
from charjax.errors import Interrupted, UserError


def test_an_unreachable_coordinator_is_reported(monkeypatch):
    def unreachable(*args, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore lines")

    monkeypatch.setattr(jax.distributed, "initialize", unreachable)
    with pytest.raises(UserError, match=r"the processes could not connect \(DEADLINE_EXCEEDED: no answer\); "):
        processes.join_processes("127.0.0.1:1", num_processes=2, process_id=1)


@pytest.mark.parametrize(
    ("coordinator", "message"),
    [
        ("127.0.0.1:99999", "port must be from 1"),
        ("127.0.0.1:0", "port must be"),
        ("a.invalid:9", "cannot be resolved"),
        ("localhost", "localhost cannot be resolved .*; pass HOST:PORT"),
    ],
)
def test_an_invalid_address_is_rejected(coordinator, message):
    with pytest.raises(UserError, match=message):
        processes.join_processes(coordinator, num_processes=2, process_id=1)


def test_a_port_in_use_is_reported():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is not available"):
            processes.join_processes(f"127.0.0.1:{port}", num_processes=2, process_id=0)


@contextlib.contextmanager
def as_second_process(sent):
    """Runs a block as process 1 of two that has received `sent` from process 0."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (processes, corpus_module):
            patch.setattr(module, "are_several", lambda: True)
            patch.setattr(module, "from_main", lambda make: sent)
            patch.setattr(module, "together", contextlib.nullcontext)
        patch.setattr(jax, "process_index", lambda: 1)
        yield


@pytest.mark.parametrize("name", ["seed", "hidden_dim", "epochs"])
def test_different_settings_are_rejected(name):
    settings = {"seed": 0, "hidden_dim": 16, "epochs": 3, "out": None}
    with as_second_process(settings):
        check_same(settings)
        with pytest.raises(
            UserError, match=f"^process 1 was started with {name} 7, but process 0 with {settings[name]}; "
        ):
            check_same({**settings, name: 7})


@pytest.mark.parametrize(
    ("other", "message"),
    [("A text of 99 bytes", "has 18 bytes here but 17 in process 0"), ("a text of a kind.", "has different text here")],
)
def test_a_different_text_is_rejected(tmp_path, monkeypatch, other, message):
    path, sent = tmp_path / "text.txt", []
    path.write_text("A text of a kind.")
    monkeypatch.setattr(corpus_module, "from_main", lambda make: sent.append(make()) or sent[0])
    monkeypatch.setattr(corpus_module, "are_several", lambda: True)
    ids, vocab, _ = corpus_module.read_ids(path)
    assert vocab.decode(ids[:]) == "A text of a kind."
    path.write_text(other)
    with as_second_process(sent[0]), pytest.raises(UserError, match=f"{message}.*; use the same text in all processes"):
        corpus_module.read_ids(path)


def test_several_processes_read_the_same_files_but_no_standard_input(tmp_path, monkeypatch):
    sent = []
    for name in "ab":
        (tmp_path / name).write_text(f"{name}é" * 9)
    monkeypatch.setattr(corpus_module, "from_main", lambda make: sent.append(json.loads(json.dumps(make()))) or sent[0])
    monkeypatch.setattr(corpus_module, "are_several", lambda: True)
    first = Corpus.from_file(tmp_path / "a", validation=tmp_path / "b")
    with as_second_process(sent[0]):
        second = Corpus.from_file(tmp_path / "a", validation=tmp_path / "b")
    assert second.vocab.decode(second.train[1:]) == first.vocab.decode(first.train[1:]) == ("aé" * 9)[1:]
    assert second.vocab.decode(second.validation[:]) == "bé" * 9
    assert (second.sha256, second.validation_sha256) == (first.sha256, first.validation_sha256)
    with pytest.raises(UserError, match="multiple processes cannot share standard input; use a file"):
        Corpus.from_file("-")


def test_a_single_process_is_the_main_one():
    assert processes.is_main()
    assert not processes.are_several()
    assert from_main(lambda: "made") == "made"
    assert least_of_all(7) == 7
    assert least_of_all(None) is None
    with pytest.raises(UserError, match="mine"), together():
        raise UserError("mine")
    council = Council(make_mesh(jax.devices()[:2]))
    council.cast(Votes(1, 2, 0))
    assert council.read(Votes(3, 0, 1)) == Votes(3, 0, 1)


@pytest.mark.parametrize(
    ("error", "raised", "main"),
    [
        (Interrupted(15, "interrupted"), Interrupted, True),
        (Interrupted(15, "interrupted"), SystemExit, False),
        (FailedElsewhereError(3), SystemExit, True),
        (UserError("alone"), UserError, False),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: gone\nmore"), UserError, True),
        (KeyError("a bug"), KeyError, True),
    ],
)
def test_how_a_process_exits(monkeypatch, error, raised, main):
    shutdowns, exits = [], []
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: shutdowns.append("together"))
    monkeypatch.setattr(processes, "_leave_at_exit", exits.append)
    monkeypatch.setattr(jax, "process_index", lambda: 0 if main else 1)
    with pytest.raises(raised) as caught, leaving_together():
        raise error
    alone = not isinstance(error, Interrupted | FailedElsewhereError)
    assert (shutdowns, exits) == (([], [1 if raised is KeyError else 2]) if alone else (["together"], []))
    if raised is SystemExit:
        assert caught.value.code == (143 if isinstance(error, Interrupted) else 2)


@pytest.mark.parametrize(
    ("num_processes", "batch", "expected"),
    [
        (1, 64, 8),
        (1, 60, 6),
        (1, 7, 1),
        (1, 8, 1),
        (1, 16, 2),
        (1, 40, 5),
        (1, 1000, 8),
        (2, 64, 8),
        (2, 16, 2),
        (4, 8, 4),
        (2, 40, 4),
    ],
)
def test_the_mesh_has_the_same_number_of_cores_of_each_process(monkeypatch, num_processes, batch, expected):
    class Device:
        def __init__(self, number):
            self.process_index = number * num_processes // 8

    devices = [Device(number) for number in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    monkeypatch.setattr("charjax.distributed.mesh.make_mesh", lambda chosen: chosen)
    mesh = make_training_mesh(batch)
    counts = [sum(device.process_index == process for device in mesh) for process in range(num_processes)]
    assert len(mesh) == expected
    assert len(set(counts)) == 1


def test_the_process_with_the_fewest_cores_limits_the_others(monkeypatch):
    class Device:
        def __init__(self, number):
            self.process_index = 0 if number < 2 else 1

    devices = [Device(number) for number in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("charjax.distributed.mesh.make_mesh", lambda chosen: chosen)
    assert [device.process_index for device in make_training_mesh(96)] == [0, 0, 1, 1]
