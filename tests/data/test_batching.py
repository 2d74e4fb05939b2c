"""Batches: each label of a split counts once, in order, and the windows joined are the text."""

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from charjax.data.batching import Streams, check_fits, cut_window, make_streams, windows_held
from charjax.errors import UserError

SIZES = {"length": st.integers(2, 300), "batch_size": st.integers(1, 12), "seq_len": st.integers(1, 20)}


@given(**SIZES, burn_in=st.integers(0, 30))
def test_each_label_counts_once_and_follows_its_input(length, batch_size, seq_len, burn_in):
    ids = np.arange(length, dtype=np.uint16)
    streams = make_streams(ids, batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    assert streams.ids.shape[0] == batch_size
    assert streams.ids.dtype == ids.dtype
    counted = []
    for row, first, stop in zip(streams.ids, streams.first, streams.stop, strict=True):
        np.testing.assert_array_equal(row[1 : stop + 1], row[:stop] + 1)  # labels are the inputs moved by one
        counted.extend(row[first + 1 : stop + 1].tolist())
    assert counted == list(range(1, length))


@given(**SIZES)
def test_sequences_differ_in_length_by_at_most_one_character(length, batch_size, seq_len):
    streams = make_streams(np.zeros(length, np.uint8), batch_size=batch_size, seq_len=seq_len)
    lengths = streams.stop - streams.first
    assert lengths.max() - lengths.min() <= 1
    assert windows_held(streams, seq_len) == -(-lengths.max() // seq_len)


@given(**SIZES, burn_in=st.integers(1, 30))
def test_burn_in_ends_at_the_start_of_the_text(length, batch_size, seq_len, burn_in):
    ids = np.arange(length, dtype=np.uint16)
    streams = make_streams(ids, batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    starts = (np.arange(batch_size) * (length - 1)) // batch_size
    np.testing.assert_array_equal(streams.first, np.minimum(burn_in, starts))


@pytest.mark.parametrize(("length", "batch_size", "seq_len", "burn_in"), [(100, 3, 7, 0), (64, 4, 5, 9), (5, 8, 3, 0)])
def test_windows_joined_are_the_sequences(length, batch_size, seq_len, burn_in):
    ids = np.random.default_rng(0).integers(0, 9, length).astype(np.uint8)
    streams = Streams(
        *map(jax.numpy.asarray, make_streams(ids, batch_size=batch_size, seq_len=seq_len, burn_in=burn_in))
    )
    cut = jax.jit(cut_window, static_argnums=2)
    windows = [cut(streams, cursor, seq_len) for cursor in range(windows_held(streams, seq_len))]
    inputs, labels, counts = (np.concatenate(parts, axis=1) for parts in zip(*windows, strict=True))
    np.testing.assert_array_equal(inputs, streams.ids[:, :-1])
    np.testing.assert_array_equal(labels, streams.ids[:, 1:])
    assert counts.sum() == length - 1
    np.testing.assert_array_equal(
        np.concatenate([row[kept] for row, kept in zip(labels, counts, strict=True)]), ids[1:]
    )


def test_streams_of_another_seq_len_are_rejected():
    streams = make_streams(np.zeros(50, np.uint8), batch_size=2, seq_len=10)
    with pytest.raises(ValueError, match="not windows of seq_len 7"):
        windows_held(streams, 7)


def test_a_text_without_a_label_is_rejected():
    with pytest.raises(UserError, match="nothing to predict"):
        make_streams(np.zeros(1, np.uint8), batch_size=1, seq_len=1)


@given(length=st.integers(2, 400), batch_size=st.integers(1, 30), seq_len=st.integers(1, 30))
def test_the_advised_sizes_are_the_largest_that_fit(length, batch_size, seq_len):
    if length > batch_size * seq_len:
        check_fits(length, batch_size=batch_size, seq_len=seq_len)
        return
    with pytest.raises(UserError, match="the largest that fit: ") as error:
        check_fits(length, batch_size=batch_size, seq_len=seq_len)
    advice = str(error.value).split("the largest that fit: ")[1]
    for option in advice.split(" or "):
        values = option.split()
        sizes = {"batch_size": batch_size, "seq_len": seq_len}
        sizes |= {flag[2:].replace("-", "_"): int(value) for flag, value in zip(values[::2], values[1::2], strict=True)}
        check_fits(length, **sizes)
        grown = values[-2][2:].replace("-", "_")
        with pytest.raises(UserError):
            check_fits(length, **{**sizes, grown: sizes[grown] + 1})


@given(**SIZES, burn_in=st.integers(0, 30))
def test_padding_is_zero(length, batch_size, seq_len, burn_in):
    streams = make_streams(np.ones(length, np.uint8), batch_size=batch_size, seq_len=seq_len, burn_in=burn_in)
    for row, stop in zip(streams.ids, streams.stop, strict=True):
        assert row[: stop + 1].all()
        assert not row[stop + 1 :].any()


@given(batch_size=st.integers(2, 30), seq_len=st.integers(1, 30))
def test_the_message_names_the_smallest_length_that_fits(batch_size, seq_len):
    with pytest.raises(UserError, match=f"needs {batch_size * seq_len + 1};"):
        check_fits(batch_size * seq_len, batch_size=batch_size, seq_len=seq_len)
    check_fits(batch_size * seq_len + 1, batch_size=batch_size, seq_len=seq_len)


def test_seq_len_1_is_advised_where_nothing_else_fits():
    with pytest.raises(UserError, match=r"the largest that fit: --batch-size 2 or --seq-len 1$"):
        check_fits(5, batch_size=4, seq_len=2)


def test_streams_without_a_window_are_rejected():
    zeros = np.zeros(2, np.int32)
    empty = Streams(np.zeros((2, 1), np.uint8), zeros, zeros, np.int32(0), np.int32(0))
    with pytest.raises(ValueError, match="not windows of seq_len 1"):
        windows_held(empty, 1)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_label_gets_no_advice_on_sizes(length):
    with pytest.raises(UserError, match="nothing to predict"):
        check_fits(length, batch_size=2, seq_len=2)
