"""Processes that train together are one: in what they compute, write, read and say, and in how they end."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.real_runs import environment, handled_by_default, last_state, sealed_steps
from helpers.small_run import TEXT, host

from charjax.distributed import processes
from charjax.distributed.mesh import make_mesh, make_training_mesh
from charjax.distributed.processes import (
    Council,
    FailedElsewhereError,
    Votes,
    from_main,
    least_of_all,
    leaving_together,
    together,
)
from charjax.errors import Interrupted, UserError
from charjax.runs.checkpoint import read_header

TOLD_ANYWAY = ("[Gloo]", "charjax: waiting for ")
OPTIONS = """
    --dtype float32 --hidden-dim 16 --hidden-layers 2 --dropout 0.3 --batch-size 8 --seq-len 20 --epochs 3
    --eval-every 15 --checkpoint-every 10 --sample-length 10
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(text, out, *more):
    return [sys.executable, "-m", "charjax", "train", str(text), "--out", str(out), *OPTIONS.split(), *map(str, more)]


@contextlib.contextmanager
def started(number, make_command, folders=None, largest_file_kb=None):
    """Starts so many processes; none outlasts the block.

    Args:
        number: how many.
        make_command: (the options that make them one) -> a process's command.
        folders: where each starts, by default where the tests run.
        largest_file_kb: what the main process may write to one file.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    running = []
    try:
        for process in range(number):
            options = [
                "--distributed",
                "--coordinator",
                coordinator,
                "--num-processes",
                number,
                "--process-id",
                process,
            ]
            limited = largest_file_kb is not None and process == 0
            limit = ["bash", "-c", f'ulimit -f {largest_file_kb}; exec "$@"', "limited"] if limited else []
            running.append(
                subprocess.Popen(
                    [*limit, *make_command(*options)],
                    env=environment(),
                    cwd=folders[process] if folders else None,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def ended(running):
    """Waits for processes: -> (exit code, output, errors without what Gloo says of its connections) of each."""
    told = []
    for process in running:
        out, err = process.communicate(timeout=200)
        lines = [[line for line in text.splitlines() if not line.startswith(TOLD_ANYWAY)] for text in (out, err)]
        told.append((process.returncode, *lines))
    return told


def train(number, text, out, *more, **options):
    with started(number, lambda *together: command(text, out, *more, *together), **options) as running:
        return ended(running)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_alike(ours, theirs):
    """Checks that two runs ended alike, but for rounding, which Adam enlarges."""
    assert read_header(ours).progress.step == read_header(theirs).progress.step
    for mine, other in zip(host(last_state(ours)), host(last_state(theirs)), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine.astype(np.float64), other.astype(np.float64), atol=2e-3)
    told = [[(row["step"], row["train_loss"], row["val_loss"]) for row in metrics(out)] for out in (ours, theirs)]
    np.testing.assert_allclose(told[0], told[1], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A text, and the run of a single process over it."""
    folder = tmp_path_factory.mktemp("alone")
    text = folder / "coffee.txt"
    text.write_text(TEXT)
    subprocess.run(command(text, folder / "run"), env=environment(), check=True, capture_output=True)
    return text, folder / "run"


@pytest.mark.parametrize("number", [2, 4])
def test_processes_train_as_one_and_write_once(tmp_path, alone, number):
    text, expected = alone
    told = train(number, text, tmp_path / "run")
    assert [code for code, _, _ in told] == [0] * number, told
    assert told[0][1][-1] == f"saved in {tmp_path / 'run'}; to generate text: charjax sample {tmp_path / 'run'}"
    assert all((out, err) == ([], []) for _, out, err in told[1:])
    assert_alike(tmp_path / "run", expected)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )
    assert (tmp_path / "run" / "samples.txt").read_text().count("step") == len(metrics(expected))
    assert sealed_steps(tmp_path / "run") == sealed_steps(expected)


def wait_for_checkpoint(running, out, step):
    while not [saved for saved in sealed_steps(out) if saved >= step]:
        assert all(process.poll() is None for process in running), ended(running)
        time.sleep(0.01)


def test_a_signal_to_one_stops_all_and_another_number_goes_on(tmp_path, alone):
    text, expected = alone
    out = tmp_path / "run"
    slow = ("--steps-per-call", 1)
    make = lambda *options: command(text, out, *slow, *options)  # noqa: E731
    with handled_by_default(signal.SIGTERM), started(2, make) as running:
        wait_for_checkpoint(running, out, 1)
        running[1].send_signal(signal.SIGTERM)
        told = ended(running)
    assert [code for code, _, _ in told] == [143, 143], told
    assert "interrupted at step" in told[0][2][-1]
    assert told[1][1:] == ([], [])
    told = train(4, text, out, "--resume")
    assert [code for code, _, _ in told] == [0] * 4, told
    assert_alike(out, expected)


def test_one_that_is_killed_ends_all_and_no_checkpoint_is_lost(tmp_path, alone):
    text, expected = alone
    out = tmp_path / "run"
    with started(2, lambda *options: command(text, out, "--steps-per-call", 1, *options)) as running:
        wait_for_checkpoint(running, out, 1)
        running[1].kill()
        (code, _, err), _ = ended(running)
    assert code == 2
    assert "the other processes cannot be reached any more" in err[-1]
    assert err[-1].endswith("start them all again, with --resume")
    subprocess.run(command(text, out, "--resume"), env=environment(), check=True, capture_output=True)
    assert_alike(out, expected)


def test_a_folder_that_is_taken_is_refused_by_all_and_told_of_once(tmp_path, alone):
    text, _ = alone
    (tmp_path / "taken").write_text("")
    told = train(2, text, tmp_path)
    assert [code for code, _, _ in told] == [2, 2]
    assert (
        told[0][2][-1]
        == f"charjax: error: {tmp_path} already exists; add --resume to continue its run, or choose another --out"
    )
    assert told[1][1:] == ([], [])


def test_a_text_that_one_process_lacks_ends_all(tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    (tmp_path / "with" / "text.txt").write_text(TEXT)
    told = train(2, "text.txt", tmp_path / "run", folders=[tmp_path / "with", tmp_path / "without"])
    assert [code for code, _, _ in told] == [2, 2]
    assert told[1][2] == ["charjax: error: text.txt does not exist; give a text file"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [("other", "bytes here"), ("two", "text.txt has another text here than where it was read first")],
)
def test_a_text_that_differs_ends_all(tmp_path, other, message):
    for name in ("one", other):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(TEXT + name)
    told = train(2, "text.txt", tmp_path / "run", folders=[tmp_path / "one", tmp_path / other])
    assert [code for code, _, _ in told] == [2, 2]
    (line,) = told[1][2]
    assert message in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "7"], "seed 7, process 0 with 0"),
        (["--hidden-dim", "24"], "hidden_dim 24, process 0 with 16"),
        (["--epochs", "4"], "epochs 4, process 0 with 3"),
        (["--resume"], "--resume True, process 0 with False"),
    ],
)
def test_options_that_differ_end_all(tmp_path, option, message):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def make_command(*options):
        return command(text, tmp_path / "run", *options, *(option if options[-1] == 1 else []))

    with started(2, make_command) as running:
        told = ended(running)
    assert [code for code, _, _ in told] == [2, 2]
    assert told[1][2] == [f"charjax: error: process 1 was started with {message}; give all the same options"]
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_ends_all_in_step(tmp_path, alone):
    """The main process may write no file larger than the first samples make samples.txt."""
    text, _ = alone
    told = train(2, text, tmp_path / "run", "--sample-length", 300_000, "--eval-every", 5, largest_file_kb=400)
    assert [code for code, _, _ in told] == [2, 2], told
    assert "cannot be written (File too large); earlier checkpoints are kept" in told[0][2][-1]
    assert "--resume" in told[0][2][-1]
    assert sealed_steps(tmp_path / "run")


# Prints which characters a process reads of the text that it trains on.
READER = """
import json, sys
from charjax import CharLSTM, Corpus, fit
from charjax.processes import join_processes
from charjax.text_file import TextFile
text, process, coordinator = sys.argv[1], int(sys.argv[-1]), sys.argv[sys.argv.index("--coordinator") + 1]
join_processes(coordinator, num_processes=2, process_id=process)
corpus = Corpus.from_file(text, train_frac=0.5)
reads, read = [], TextFile.read
def watched(self, start, stop):
    reads.append((start, stop))
    return read(self, start, stop)
TextFile.read = watched
model = CharLSTM(corpus.vocab.size, hidden_dim=8, hidden_layers=1)
fit(model, corpus, batch_size=4, seq_len=20, epochs=1, sample_length=0)
print(json.dumps([part for part in reads if part[1] <= len(corpus.train)]))
"""


def test_each_process_reads_its_part_of_the_text_alone(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Grüße an alle, die Kaffee mögen.\n" * 40)
    make = lambda *options: [sys.executable, "-c", READER, str(text), *map(str, options)]  # noqa: E731
    with started(2, make) as running:
        told = ended(running)
    assert [code for code, _, _ in told] == [0, 0], told
    first, second = (json.loads(out[-1]) for _, out, _ in told)
    labels = 40 * 33 // 2 - 1
    assert sorted(map(tuple, first + second)) == [
        (labels * stream // 4, labels * (stream + 1) // 4 + 1) for stream in range(4)
    ]
    assert len(first) == len(second) == 2
    assert max(stop for _, stop in first) <= min(start for start, _ in second) + 1


def test_a_coordinator_that_is_not_there_is_told_of(monkeypatch):
    def unreachable(*args, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore lines")

    monkeypatch.setattr(jax.distributed, "initialize", unreachable)
    with pytest.raises(UserError, match=r"the processes do not come together \(DEADLINE_EXCEEDED: no answer\)$"):
        processes.join_processes("127.0.0.1:1", num_processes=2, process_id=1)


@pytest.mark.parametrize(
    ("coordinator", "message"),
    [("127.0.0.1:99999", "ports are from 1"), ("127.0.0.1:0", "ports are"), ("a.invalid:9", "no address")],
)
def test_an_address_that_cannot_be_is_refused(coordinator, message):
    with pytest.raises(UserError, match=message):
        processes.join_processes(coordinator, num_processes=2, process_id=1)


def test_a_port_in_use_is_told_of():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be taken here"):
            processes.join_processes(f"127.0.0.1:{port}", num_processes=2, process_id=0)


def test_waiting_for_the_others_ends_with_ctrl_c(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    with started(1, lambda *together: command(text, tmp_path / "run", *["2" if o == 1 else o for o in together])) as (
        process,
    ):
        assert "waiting for 2 processes" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "charjax: interrupted\n"


def test_without_a_cluster_it_says_what_to_give():
    """In a process of its own: JAX is in use here already."""
    program = "from charjax.distributed.processes import join_processes; join_processes()"
    clean = {name: value for name, value in environment().items() if not name.startswith(("SLURM", "OMPI", "KUBE"))}
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=False)
    assert "no cluster was recognised" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("give --coordinator HOST:PORT, --num-processes and --process-id")


def test_a_process_by_itself_is_the_main_one():
    assert processes.is_main()
    assert not processes.are_several()
    assert from_main(lambda: b"made") == b"made"
    assert least_of_all(7) == 7
    assert least_of_all(None) is None
    with pytest.raises(UserError, match="mine"), together():
        raise UserError("mine")
    council = Council(make_mesh(jax.devices()[:2]))
    council.cast(Votes(1, 2, 0))
    assert council.read(Votes(3, 0, 1)) == Votes(3, 0, 1)  # its own, as of now


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
def test_how_a_process_leaves(monkeypatch, error, raised, main):
    ends, leaves = [], []
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: ends.append("in step"))
    monkeypatch.setattr(processes, "_leave_at_exit", leaves.append)
    monkeypatch.setattr(jax, "process_index", lambda: 0 if main else 1)
    with pytest.raises(raised) as caught, leaving_together():
        raise error
    alone = not isinstance(error, Interrupted | FailedElsewhereError)
    assert (ends, leaves) == (([], [1 if raised is KeyError else 2]) if alone else (["in step"], []))
    if raised is SystemExit:
        assert caught.value.code == (143 if isinstance(error, Interrupted) else 2)


@pytest.mark.parametrize(
    ("processes_there", "batch", "expected"), [(1, 64, 8), (2, 64, 8), (2, 16, 2), (4, 8, 4), (2, 40, 4)]
)
def test_the_mesh_takes_as_many_cores_of_each_process(monkeypatch, processes_there, batch, expected):
    class Device:
        def __init__(self, number):
            self.process_index = number * processes_there // 8

    devices = [Device(number) for number in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: processes_there)
    monkeypatch.setattr("charjax.distributed.mesh.make_mesh", lambda chosen: chosen)
    mesh = make_training_mesh(batch)
    counts = [sum(device.process_index == process for device in mesh) for process in range(processes_there)]
    assert len(mesh) == expected
    assert len(set(counts)) == 1


def test_the_mesh_takes_no_more_cores_of_a_process_than_the_least_has(monkeypatch):
    class Device:
        def __init__(self, number):
            self.process_index = 0 if number < 2 else 1

    devices = [Device(number) for number in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("charjax.distributed.mesh.make_mesh", lambda chosen: chosen)
    assert [device.process_index for device in make_training_mesh(96)] == [0, 0, 1, 1]
