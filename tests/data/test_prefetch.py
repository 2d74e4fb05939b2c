"""Streams on their way to the devices: chunks put together are the whole, one is read ahead, errors come through."""

import dataclasses
import importlib
import logging
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from helpers.small_run import SMALL, assert_same, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from charjax import fit
from charjax.data import batching as streams_module
from charjax.data import corpus as corpus_module
from charjax.data.batching import StreamLayout, cut_window, make_streams
from charjax.data.corpus import Corpus
from charjax.data.prefetch import CHUNKS_IN_MEMORY, StreamFeed
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.errors import UserError
from charjax.progress.reporter import NullReporter

# The package's `fit` is the function, which hides the module's name.
fit_module = importlib.import_module("charjax.training.fit")
IDS = np.random.default_rng(0).integers(0, 300, 1001).astype(np.uint16)


def feed_of(ids, *, batch_size=4, seq_len=5, burn_in=0, devices=2, budget=None):
    layout = StreamLayout.of(len(ids), batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    return StreamFeed(ids, layout, make_mesh(jax.devices()[:devices]), budget=budget)


class Watched:
    """Ids that note which thread reads which slice, and fail from one position on if they are told to."""

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


@settings(max_examples=40)
@given(st.integers(2, 400), st.integers(1, 4), st.integers(1, 9), st.integers(0, 20), st.integers(1, 4000))
def test_chunks_give_the_windows_of_the_whole(length, half, seq_len, burn_in, budget):
    sizes = {"batch_size": 2 * half, "seq_len": seq_len, "burn_in": burn_in}
    whole = put_streams(make_streams(IDS[:length], **sizes), make_mesh(jax.devices()[:2]))
    with feed_of(IDS[:length], **sizes, budget=budget) as feed:
        assert feed.windows == int(whole.windows)
        shapes = set()
        for cursor in range(feed.windows):
            chunk = feed.at(cursor)
            assert int(chunk.begin) <= cursor < feed.end_of_chunk(cursor) <= int(chunk.begin) + feed.chunk_windows
            shapes.add(chunk.ids.shape)
            for ours, theirs in zip(
                cut_window(chunk, cursor, seq_len), cut_window(whole, cursor, seq_len), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
        assert len(shapes) == 1


def test_without_need_there_is_one_chunk_which_stays():
    with feed_of(IDS, budget=4 * 50 * 5 * 2) as feed:
        assert feed.chunk_windows == feed.windows == 50
        assert feed.at(0) is feed.at(49)
        assert feed.end_of_chunk(0) == 50


def test_the_budget_is_kept(caplog):
    budget = 4 * 50 * 5 * 2 - 1
    with caplog.at_level(logging.INFO, logger="charjax"), feed_of(IDS, budget=budget) as feed:
        assert CHUNKS_IN_MEMORY * (feed.at(0).ids.nbytes - 4 * 2) <= budget
    assert caplog.messages == ["the text is larger than the 0.002 MB it may take: it is read in 5 parts"]


def test_long_rows_are_read_in_pieces(monkeypatch):
    with feed_of(IDS, batch_size=2) as feed:
        whole = feed.at(0)
    monkeypatch.setattr(streams_module, "PIECE", 7)
    ids = Watched(IDS)
    with feed_of(ids, batch_size=2) as feed:
        np.testing.assert_array_equal(feed.at(0).ids, whole.ids)
    assert max(stop - start for start, stop in ids.reads) == 7


def test_a_chunk_is_short_enough_for_32_bits():
    class Endless:
        dtype = np.dtype(np.uint8)

        def __len__(self):
            return 10**10

    with feed_of(Endless(), batch_size=2, seq_len=100) as feed:
        assert feed.chunk_windows * 100 < 2**31
        assert feed.windows == 5 * 10**7
        assert feed.end_of_chunk(feed.windows - 1) == feed.windows


def test_the_least_is_one_window():
    with feed_of(IDS, budget=1) as feed:
        assert feed.chunk_windows == 1


def test_the_next_chunk_is_read_ahead_in_a_thread_and_the_first_follows_the_last():
    ids = Watched(IDS)
    with feed_of(ids, budget=4 * 50 * 5 * 2 - 1) as feed:
        feed.at(0)
        feed._next[1].result()
        assert {start for start, _ in ids.reads} == {0, 60, 250, 310, 500, 560, 750, 810}
        assert any(name.startswith("charjax text") for name in ids.threads)
        before = len(ids.reads)
        assert int(feed.at(12).begin) == 12
        feed._next[1].result()
        assert len(ids.reads) == before + 4  # the chunk after, and no other
        feed.at(48)
        assert feed._next[0] == 0


def test_each_device_gets_its_rows_alone():
    ids = Watched(IDS)
    layout = StreamLayout.of(len(IDS), batch_size=4, seq_len=5)
    with StreamFeed(ids, layout, make_mesh(jax.devices()[:2])) as feed:
        streams = feed.at(0)
    for shard in streams.ids.addressable_shards:
        np.testing.assert_array_equal(shard.data, layout.read(IDS, shard.index[0], 0, 50))
    assert len(ids.reads) == 4


def test_what_goes_wrong_ahead_is_raised_where_it_is_wanted():
    with feed_of(Watched(IDS, fails_from=900), budget=4 * 50 * 5 * 2 - 1) as feed:
        feed.at(0)
        feed.at(12)
        with pytest.raises(UserError, match="changed while it was in use"):
            feed.at(24)


def test_streams_too_long_for_32_bits_are_counted_exactly():
    """Positions count within a chunk, so that only a chunk has to be shorter than 2**31."""
    length = 10**12
    layout = StreamLayout.of(length, batch_size=2, seq_len=100)
    last = layout.windows - 1
    first, stop = layout.counted(slice(0, 2), last - 3, 4)
    np.testing.assert_array_equal(first, 0)
    np.testing.assert_array_equal(stop, layout.ends - layout.begins - (last - 3) * 100)


@pytest.mark.parametrize("text", ["Plain text, of one byte each.\n", "Grüße, über zwei Bytes — und drei.\n"])
def test_a_text_in_its_file_trains_as_one_in_memory_bit_for_bit(tmp_path, monkeypatch, text):
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
    for corpus, budget in ((resident, None), (resident, 1500), (lazy, 1500), (lazy, 1)):
        monkeypatch.setattr(fit_module, "room_for_text", lambda devices, budget=budget: budget)
        evaluations = []
        reporter = NullReporter()
        reporter.evaluation = lambda evaluation, sample, kept=evaluations: kept.append(evaluation)
        runs.append((fit(model, corpus, SMALL, reporter=reporter, **options), evaluations))
    (expected, losses), *others = runs
    assert len(losses) > 4
    for state, told in others:
        assert_same(state, expected)
        assert [(e.step, e.val_loss) for e in told] == [(e.step, e.val_loss) for e in losses]
        # Sums over a call are float32, and calls end with chunks.
        np.testing.assert_allclose([e.train_loss for e in told], [e.train_loss for e in losses], rtol=1e-6)


def test_a_run_over_a_text_in_its_file_resumes_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("The barista brews a flat white. " * 100)
    monkeypatch.setattr(corpus_module, "room_for_text", lambda: 0)
    monkeypatch.setattr(fit_module, "room_for_text", lambda devices: 900)
    corpus = Corpus.from_file(path)
    model, config = small_model(corpus), dataclasses.replace(SMALL, sample_length=0, checkpoint_every=5)
    whole = fit(model, corpus, config)
    with pytest.raises(UserError, match="changed while it was in use"):
        fit(model, corpus, config, out=tmp_path / "run", reporter=Meddler(path, at_step=10))
    path.write_text("The barista brews a flat white. " * 100)
    corpus = Corpus.from_file(path)
    assert_same(fit(model, corpus, config, out=tmp_path / "run", resume=True), whole)


class Meddler(NullReporter):
    """Writes to the text in the middle of a run."""

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
from charjax.report.progress import NullReporter

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
    """The most memory that arrays and objects take at once, in megabytes: in a run's second epoch and in its third.

    Not what the process takes: that moves by tens of megabytes with what the compiler takes and the allocator keeps.
    The first epoch closes with the first evaluation, which brings programs of its own.
    """
    command = [sys.executable, "-c", STEADY, str(path), str(memory_mb)]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(number) / 1e6 for number in done.stdout.split()]
