"""Processes that train together, for real: they compute, write, read and report as one, and exit together."""

import contextlib
import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers.real_runs import environment, handled_by_default, last_state, sealed_steps
from helpers.signalled_run import signalled
from helpers.small_run import TEXT, host

from charjax.runs.checkpoint import read_header
from charjax.runs.integrity import DIGESTS

# Lines that every process prints.
INFORMATION = ("[Gloo]", "charjax: waiting for ")
OPTIONS = """
    --dtype float32 --hidden-dim 16 --hidden-layers 1 --dropout 0.3 --batch-size 8 --seq-len 20 --epochs 3
    --eval-every 15 --checkpoint-every 10 --sample-length 10
"""


@contextlib.contextmanager
def reserved_port():
    """A free port, bound here so that no other process gets it; the coordinator may listen on it all the same."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def command(text, out, *more):
    return [sys.executable, "-m", "charjax", "train", str(text), "--out", str(out), *OPTIONS.split(), *map(str, more)]


@contextlib.contextmanager
def started(number, make_command, folders=None, largest_file_kb=None):
    """Starts processes, none of which outlasts the block.

    Args:
        number: number of processes.
        make_command: (index, the options that connect the processes) -> command of a process.
        folders: working directory of each process, by default that of the tests.
        largest_file_kb: size limit of each file that the main process writes.
    """
    running = []
    with reserved_port() as port:
        try:
            for process in range(number):
                address = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
                options = [*address, "--num-processes", str(number), "--process-id", str(process)]
                limited = largest_file_kb is not None and process == 0
                limit = ["bash", "-c", f'ulimit -f {largest_file_kb}; exec "$@"', "limited"] if limited else []
                running.append(
                    subprocess.Popen(
                        [*limit, *make_command(process, options)],
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


def results(running):
    """Waits for processes -> (exit code, lines of output, lines of errors without INFORMATION) of each."""
    found = []
    for process in running:
        texts = process.communicate(timeout=300)
        lines = [[line for line in text.splitlines() if not line.startswith(INFORMATION)] for text in texts]
        found.append((process.returncode, *lines))
    return found


def train(number, text, out, *more, **options):
    with started(number, lambda _, connect: command(text, out, *more, *connect), **options) as running:
        return results(running)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_alike(ours, theirs):
    """Checks that two runs ended alike up to rounding, which Adam amplifies."""
    assert read_header(ours).progress.step == read_header(theirs).progress.step
    for mine, other in zip(host(last_state(ours)), host(last_state(theirs)), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine.astype(np.float64), other.astype(np.float64), atol=2e-3)
    losses = [[(row["step"], row["train_loss"], row["val_loss"]) for row in metrics(out)] for out in (ours, theirs)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A text, and the run of a single process on it."""
    folder = tmp_path_factory.mktemp("alone")
    text = folder / "coffee.txt"
    text.write_text(TEXT)
    train_alone(text, folder / "run")
    return text, folder / "run"


def train_alone(text, out, *more):
    subprocess.run(command(text, out, *more), env=environment(), check=True, capture_output=True)


def test_two_processes_train_as_one_and_only_one_writes(tmp_path, alone):
    text, expected = alone
    # Only the main process has a tracker, but all of them have to agree whether it ends the training.
    found = train(2, text, tmp_path / "run", "--tensorboard")
    assert [code for code, _, _ in found] == [0, 0], found
    assert found[0][1][-1] == f"saved in {tmp_path / 'run'}; to generate text: charjax sample {tmp_path / 'run'}"
    assert found[1][1:] == ([], [])
    assert_alike(tmp_path / "run", expected)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        ["tensorboard", *(path.name for path in expected.iterdir())]
    )
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "run" / "samples.txt").read_text().count("step") == len(metrics(expected))
    assert sealed_steps(tmp_path / "run") == sealed_steps(expected)


@pytest.mark.parametrize("continued_by", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_signal_to_one_stops_both_and_another_number_continues(tmp_path, alone, continued_by):
    text, expected = alone
    out = tmp_path / "run"

    def make_command(process, connect):
        whole = command(text, out, "--steps-per-call", 1, *connect)
        return signalled(whole, signal.SIGTERM, at_call=25) if process == 1 else whole

    with handled_by_default(signal.SIGTERM), started(2, make_command) as running:
        found = results(running)
    assert [code for code, _, _ in found] == [143, 143], found
    assert "interrupted at step" in found[0][2][-1]
    assert found[1][1:] == ([], [])
    (out / "model.safetensors").unlink()  # all of them load the best checkpoint to write it again
    found = train(continued_by, text, out, "--resume")
    assert [code for code, _, _ in found] == [0] * continued_by, found
    assert_alike(out, expected)


def test_a_killed_process_ends_the_other_and_no_checkpoint_is_lost(tmp_path, alone):
    text, expected = alone
    out = tmp_path / "run"

    def make_command(process, connect):
        whole = command(text, out, "--steps-per-call", 1, *connect)
        # During a save the other process would wait in Orbax until JAX ends it by its own means.
        saved = out / "checkpoints" / "30" / DIGESTS
        return signalled(whole, signal.SIGKILL, at_call=35, awaited=saved) if process == 1 else whole

    with started(2, make_command) as running:
        (code, _, errors), _ = results(running)
    assert code == 2
    assert "lost contact with the other processes" in errors[-1]
    assert errors[-1].endswith("restart all of them with --resume")
    assert sealed_steps(out)
    train_alone(text, out, "--resume")
    assert_alike(out, expected)


def test_an_existing_folder_is_refused_by_all_and_reported_once(tmp_path, alone):
    text, _ = alone
    (tmp_path / "taken").write_text("")
    found = train(2, text, tmp_path)
    assert [code for code, _, _ in found] == [2, 2]
    assert found[0][2][-1].startswith(f"charjax: error: {tmp_path} already exists and ")
    assert found[1][1:] == ([], [])


def test_a_text_that_one_process_lacks_ends_all(tmp_path):
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    (tmp_path / "with" / "text.txt").write_text(TEXT)
    found = train(2, "text.txt", tmp_path / "run", folders=[tmp_path / "with", tmp_path / "without"])
    assert [code for code, _, _ in found] == [2, 2]
    assert found[1][2] == ["charjax: error: text.txt does not exist; use a text file"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "7"], "seed 7, but process 0 with 0"),
        pytest.param(["--resume"], "--resume True, but process 0 with False", marks=pytest.mark.slow),
    ],
)
def test_options_that_differ_end_all(tmp_path, option, message):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def make_command(process, connect):
        return command(text, tmp_path / "run", *connect, *(option if process == 1 else []))

    with started(2, make_command) as running:
        found = results(running)
    assert [code for code, _, _ in found] == [2, 2]
    assert found[1][2] == [
        f"charjax: error: process 1 was started with {message}; start all of them with the same options"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_log_that_cannot_be_written_ends_all_together(tmp_path, alone):
    """The first samples make samples.txt larger than any file that the main process may write."""
    text, _ = alone
    found = train(2, text, tmp_path / "run", "--sample-length", 150_000, "--eval-every", 5, largest_file_kb=200)
    assert [code for code, _, _ in found] == [2, 2], found
    assert "cannot be written (File too large); earlier checkpoints are kept" in found[0][2][-1]
    assert "--resume" in found[0][2][-1]
    assert sealed_steps(tmp_path / "run")


# Prints which characters of its text a process reads for training.
READER = """
import json, sys
from charjax import CharLSTM, Corpus, fit, join_processes
from charjax.data.text_file import TextFile
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


@pytest.mark.slow
def test_each_process_reads_only_its_part_of_the_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Grüße an alle, die Kaffee mögen.\n" * 40)
    with started(2, lambda _, connect: [sys.executable, "-c", READER, str(text), *connect]) as running:
        found = results(running)
    assert [code for code, _, _ in found] == [0, 0], found
    first, second = (json.loads(out[-1]) for _, out, _ in found)
    labels = 40 * 33 // 2 - 1
    assert sorted(map(tuple, first + second)) == [
        (labels * sequence // 4, labels * (sequence + 1) // 4 + 1) for sequence in range(4)
    ]
    assert len(first) == len(second) == 2
    assert max(stop for _, stop in first) <= min(start for start, _ in second) + 1


def test_ctrl_c_ends_the_wait_for_the_others(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def make_command(_, connect):
        connect[connect.index("--num-processes") + 1] = "2"
        return command(text, tmp_path / "run", *connect)

    with started(1, make_command) as (process,):
        assert "waiting for 2 processes" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
        assert process.stderr.read() == "charjax: interrupted\n"


def test_without_a_cluster_the_message_says_what_to_give():
    """In a separate process, because JAX is already in use here."""
    program = "from charjax import join_processes; join_processes()"
    clean = {name: value for name, value in environment().items() if not name.startswith(("SLURM", "OMPI", "KUBE"))}
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=False)
    assert "no cluster was detected" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("pass --coordinator HOST:PORT, --num-processes and --process-id")
