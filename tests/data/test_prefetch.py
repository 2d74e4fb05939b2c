"""Prefetching: the chunks joined are the whole split, the next one is read ahead, and errors reach the caller."""

import dataclasses
import logging
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from helpers.small_run import SMALL, assert_same, small_model
from hypothesis import given, settings, strategies as st

from charjax import fit
from charjax.data import batching as batching_module, corpus as corpus_module
from charjax.data.batching import SequenceLayout, cut_window, make_streams
from charjax.data.corpus import Corpus
from charjax.data.prefetch import CHUNKS_IN_MEMORY, Prefetcher
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.errors import UserError
from charjax.progress.reporter import NullReporter
from charjax.training import loop as loop_module

IDS = np.random.default_rng(0).integers(0, 300, 1001).astype(np.uint16)


def prefetcher(ids, *, batch_size=4, seq_len=5, burn_in=0, devices=2, budget=None):
    layout = SequenceLayout.of(len(ids), batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    return Prefetcher(ids, layout, make_mesh(jax.devices()[:devices]), budget=budget)


class Watched:
    """Ids that record which thread reads which slice, and can fail beyond a position."""

    def __init__(self, ids, fails_from=10**9):
        self.ids, self.fails_from, self.reads, self.threads = ids, fails_from, [], set()
        self.dtype = ids.dtype

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, part):
        self.reads.append((part.start, part.stop))
        self.threads.add(threading.current_thread().name)
        if part.stop > self.fails_from:
            raise UserError("text.txt changed while it was in use")
        return self.ids[part]


def numpy_window(streams, cursor, seq_len):
    """`cut_window` in NumPy, which compiles nothing for each new shape."""
    start = (cursor - int(streams.begin)) * seq_len
    ids = np.asarray(streams.ids)[:, start : start + seq_len + 1]
    position = start + np.arange(seq_len)
    counts = (np.asarray(streams.first)[:, None] <= position) & (position < np.asarray(streams.stop)[:, None])
    return ids[:, :-1], ids[:, 1:], counts


def assert_same_windows(length, cut, *, budget, **sizes):
    """Checks that the chunks have the windows of the whole split, and are of one shape."""
    whole = put_streams(make_streams(IDS[:length], **sizes), make_mesh(jax.devices()[:2]))
    with prefetcher(IDS[:length], **sizes, budget=budget) as chunks:
        assert chunks.windows == int(whole.windows)
        shapes = set()
        for cursor in range(chunks.windows):
            chunk = chunks.chunk_at(cursor)
            assert int(chunk.begin) <= cursor < chunks.end_of_chunk(cursor) <= int(chunk.begin) + chunks.chunk_windows
            shapes.add(chunk.ids.shape)
            for ours, theirs in zip(
                cut(chunk, cursor, sizes["seq_len"]), cut(whole, cursor, sizes["seq_len"]), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
        assert len(shapes) == 1


@settings(max_examples=40)
@given(st.integers(2, 400), st.integers(1, 4), st.integers(1, 9), st.integers(0, 20), st.integers(1, 4000))
def test_chunks_have_the_windows_of_the_whole(length, half, seq_len, burn_in, budget):
    sizes = {"batch_size": 2 * half, "seq_len": seq_len, "burn_in": burn_in}
    assert_same_windows(length, numpy_window, **sizes, budget=budget)


@pytest.mark.parametrize(("length", "seq_len", "budget"), [(120, 7, 300), (33, 4, 1)])
def test_windows_are_cut_from_chunks_as_from_the_whole(length, seq_len, budget):
    cut = jax.jit(cut_window, static_argnums=2)
    assert_same_windows(length, cut, batch_size=4, seq_len=seq_len, burn_in=3, budget=budget)


def test_a_split_within_its_budget_is_one_chunk_that_stays():
    with prefetcher(IDS, budget=4 * 50 * 5 * 2) as chunks:
        assert chunks.chunk_windows == chunks.windows == 50
        assert chunks.chunk_at(0) is chunks.chunk_at(49)
        assert chunks.end_of_chunk(0) == 50


def test_chunks_stay_within_the_budget(caplog):
    budget = 4 * 50 * 5 * 2 - 1
    with caplog.at_level(logging.INFO, logger="charjax"), prefetcher(IDS, budget=budget) as chunks:
        assert CHUNKS_IN_MEMORY * (chunks.chunk_at(0).ids.nbytes - 4 * 2) <= budget
    assert caplog.messages == ["the text does not fit in its memory budget of 0.002 MB and is loaded in 5 chunks"]


def test_long_rows_are_read_in_parts(monkeypatch):
    with prefetcher(IDS, batch_size=2) as chunks:
        whole = chunks.chunk_at(0)
    monkeypatch.setattr(batching_module, "READ_CHARACTERS", 7)
    ids = Watched(IDS)
    with prefetcher(ids, batch_size=2) as chunks:
        np.testing.assert_array_equal(chunks.chunk_at(0).ids, whole.ids)
    assert max(stop - start for start, stop in ids.reads) == 7


def test_positions_in_a_chunk_fit_32_bits():
    class Endless:
        dtype = np.dtype(np.uint8)

        def __len__(self):
            return 10**10

    with prefetcher(Endless(), batch_size=2, seq_len=100) as chunks:
        assert chunks.chunk_windows * 100 < 2**31
        assert chunks.windows == 5 * 10**7
        assert chunks.end_of_chunk(chunks.windows - 1) == chunks.windows


def test_a_chunk_has_at_least_one_window():
    with prefetcher(IDS, budget=1) as chunks:
        assert chunks.chunk_windows == 1


def test_a_thread_reads_the_next_chunk_ahead_and_after_the_last_the_first():
    ids = Watched(IDS)
    with prefetcher(ids, budget=4 * 50 * 5 * 2 - 1) as chunks:
        chunks.chunk_at(0)
        chunks._next[1].result()
        assert {start for start, _ in ids.reads} == {0, 60, 250, 310, 500, 560, 750, 810}
        assert any(name.startswith("charjax text") for name in ids.threads)
        before = len(ids.reads)
        assert int(chunks.chunk_at(12).begin) == 12
        chunks._next[1].result()
        assert len(ids.reads) == before + 4  # only the next chunk
        chunks.chunk_at(48)
        assert chunks._next[0] == 0


def test_each_device_gets_only_its_rows():
    ids = Watched(IDS)
    layout = SequenceLayout.of(len(IDS), batch_size=4, seq_len=5)
    with Prefetcher(ids, layout, make_mesh(jax.devices()[:2])) as chunks:
        streams = chunks.chunk_at(0)
    for shard in streams.ids.addressable_shards:
        np.testing.assert_array_equal(shard.data, layout.read(IDS, shard.index[0], 0, 50))
    assert len(ids.reads) == 4


def test_an_error_while_reading_ahead_is_raised_when_the_chunk_is_needed():
    with prefetcher(Watched(IDS, fails_from=900), budget=4 * 50 * 5 * 2 - 1) as chunks:
        chunks.chunk_at(0)
        chunks.chunk_at(12)
        with pytest.raises(UserError, match="changed while it was in use"):
            chunks.chunk_at(24)


def test_sequences_too_long_for_32_bits_are_counted_exactly():
    """Positions are relative to a chunk, so only a chunk has to be shorter than 2**31."""
    length = 10**12
    layout = SequenceLayout.of(length, batch_size=2, seq_len=100)
    last = layout.windows - 1
    first, stop = layout.counted(slice(0, 2), last - 3, 4)
    np.testing.assert_array_equal(first, 0)
    np.testing.assert_array_equal(stop, layout.ends - layout.begins - (last - 3) * 100)


@pytest.mark.parametrize(
    ("text", "in_memory", "in_file"),
    [
        pytest.param("Plain text, of one byte each.\n", [], [1500], marks=pytest.mark.slow, id="ascii"),
        pytest.param("Grüße, über zwei Bytes — und drei.\n", [1500], [1], id="unicode"),
    ],
)
def test_training_from_a_file_equals_training_from_memory_bit_for_bit(tmp_path, monkeypatch, text, in_memory, in_file):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number} {text}" for number in range(90)))
    resident = Corpus.from_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "room_for_text", lambda: 0)
        lazy = Corpus.from_file(path)
    model = small_model(resident)
    mesh = make_mesh(jax.devices()[:2])
    options = {"epochs": 2, "eval_every": 9, "sample_length": 0, "steps_per_call": 4, "mesh": mesh}
    runs = []
    for corpus, budget in [
        (resident, None),
        *((resident, size) for size in in_memory),
        *((lazy, size) for size in in_file),
    ]:
        monkeypatch.setattr(loop_module, "room_for_text", lambda devices, budget=budget: budget)
        evaluations = []
        reporter = NullReporter()
        reporter.evaluation = lambda evaluation, sample, kept=evaluations: kept.append(evaluation)
        runs.append((fit(model, corpus, SMALL, reporter=reporter, **options), evaluations))
    (expected, losses), *others = runs
    assert len(losses) > 4
    for state, evaluations in others:
        assert_same(state, expected)
        assert [(e.step, e.val_loss) for e in evaluations] == [(e.step, e.val_loss) for e in losses]
        # Losses are summed per call in float32, and a call ends where a chunk ends.
        np.testing.assert_allclose([e.train_loss for e in evaluations], [e.train_loss for e in losses], rtol=1e-6)


def test_a_run_from_a_file_resumes_bit_for_bit(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("The barista brews a flat white. " * 100)
    monkeypatch.setattr(corpus_module, "room_for_text", lambda: 0)
    monkeypatch.setattr(loop_module, "room_for_text", lambda devices: 900)
    corpus = Corpus.from_file(path)
    model, config = small_model(corpus), dataclasses.replace(SMALL, sample_length=0, checkpoint_every=5)
    whole = fit(model, corpus, config)
    with pytest.raises(UserError, match="changed while it was in use"):
        fit(model, corpus, config, out=tmp_path / "run", reporter=TextChanger(path, at_step=10))
    path.write_text("The barista brews a flat white. " * 100)
    corpus = Corpus.from_file(path)
    assert_same(fit(model, corpus, config, out=tmp_path / "run", resume=True), whole)


class TextChanger(NullReporter):
    """Overwrites the text in the middle of a run."""

    def __init__(self, path, at_step):
        self.path, self.at_step = path, at_step

    def update(self, step, loss):
        if step >= self.at_step:
            self.path.write_text("another text")


STEADY = """
import sys
import tracemalloc
import jax  # noqa: E402
from charjax import CharLSTM, Corpus, fit
from charjax.progress.reporter import NullReporter

class Reporter(NullReporter):
    sizes = []
    def update(self, step, loss):
        on_devices = sum(array.nbytes for array in jax.live_arrays())
        self.sizes.append(tracemalloc.get_traced_memory()[1] + on_devices)
        tracemalloc.reset_peak()

path, memory_mb = sys.argv[1], int(sys.argv[2])
tracemalloc.start()
corpus = Corpus.from_file(path, memory_mb=memory_mb)
model = CharLSTM(corpus.vocab.size, hidden_dim=4, hidden_layers=1)
options = {"epochs": 3, "sample_length": 0, "steps_per_call": 10, "text_memory_mb": memory_mb}
fit(model, corpus, batch_size=64, seq_len=1000, reporter=Reporter(), **options)
steps = len(Reporter.sizes) // 3
print(max(Reporter.sizes[steps:-steps]), max(Reporter.sizes[-steps:]))
"""


@pytest.mark.slow
def test_memory_is_steady_over_a_text_many_times_its_budget(tmp_path):
    path = tmp_path / "text.txt"
    with path.open("w") as file:
        for number in range(10):
            file.write(f"{number} The barista brews a flat white for the grandmother.\n" * 10_000)
    megabytes = path.stat().st_size / 1e6
    assert megabytes > 5
    second, third = measured(path, 1)
    assert third < second + 0.1 * megabytes
    resident, _ = measured(path, 1000)
    assert third < resident - 0.7 * megabytes


def measured(path, memory_mb):
    """Peak memory of arrays and Python objects in megabytes, in a run's second and third epoch.

    The size of the process would vary by tens of megabytes with the compiler and the allocator. The first epoch is left
    out because its evaluation compiles programs.
    """
    command = [sys.executable, "-c", STEADY, str(path), str(memory_mb)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(number) / 1e6 for number in done.stdout.split()]
