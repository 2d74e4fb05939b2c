"""Pieces, documents and segments are those of the whole text, however it is cut."""

import numpy as np
from hypothesis import given, strategies as st

from charjax.analysis.documents import DocumentFinder, regroup, segment_blocks


@given(st.text("ab", max_size=60), st.sampled_from(["a", "aa", "ab", "aab", "abab"]), st.integers(1, 9))
def test_documents_are_those_of_split(text, separator, size):
    finder = DocumentFinder(np.frombuffer(separator.encode(), np.uint8))
    pieces = [np.frombuffer(text[at : at + size].encode(), np.uint8) for at in range(0, len(text), size)]
    begins = [flag for piece in pieces for flag in finder.begins(piece)]
    documents = [document + separator for document in text.split(separator)]
    starts = np.cumsum([0, *map(len, documents)])
    assert [n for n, flag in enumerate(begins) if flag] == [start for start in starts if start < len(text)]


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 12))
def test_regrouping_keeps_everything_and_makes_pieces_of_one_size(lengths, size):
    ids = np.arange(sum(lengths))
    pieces = np.split(ids, np.cumsum(lengths)[:-1]) if lengths else []
    groups = list(regroup(pieces, size))
    assert all(len(group) == size for group in groups[:-1])
    assert all(0 < len(group) <= size for group in groups)
    assert np.concatenate([*groups, ids[:0]]).tolist() == ids.tolist()


def cut(documents, seq_len):
    """Segments of documents, one by one: (the character before, the labels, whether it begins a document)."""
    for document in documents:
        labels = [document[at : at + seq_len] for at in range(1, len(document), seq_len)] or [[]]
        for number, segment in enumerate(labels):
            yield document[number * seq_len], list(segment), number == 0


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    seq_len=st.integers(1, 6),
    size=st.integers(1, 5),
    piece=st.integers(1, 40),
)
def test_segments_are_those_of_a_loop_over_documents(lengths, seq_len, size, piece):
    ids = np.arange(sum(lengths)).astype(np.uint16)
    begins = np.isin(ids, np.cumsum([0, *lengths]))
    documents = np.split(ids, np.cumsum(lengths)[:-1])
    pieces = [(ids[at : at + piece], begins[at : at + piece]) for at in range(0, len(ids), piece)]
    blocks = list(segment_blocks([(ids[:0], begins[:0]), *pieces], seq_len=seq_len, size=size))
    found = [
        (window[0], window[1 : count + 1].tolist(), fresh)
        for block in blocks
        for window, count, fresh in list(zip(block.windows, block.counts, block.fresh, strict=True))[: block.number]
    ]
    assert found == list(cut(documents, seq_len))
    assert all(block.number == size for block in blocks[:-1])
    assert {block.windows.shape for block in blocks} == {(size, seq_len + 1)}
    # Every character is where the block says.
    assert np.concatenate([block.windows[block.rows, block.columns] for block in blocks]).tolist() == ids.tolist()
    assert np.concatenate([block.columns == 0 for block in blocks]).tolist() == begins.tolist()


def test_an_empty_text_has_no_segments():
    assert not list(segment_blocks([], seq_len=3, size=2))
    assert not list(segment_blocks([(np.zeros(0, int), np.zeros(0, bool))], seq_len=3, size=2))
