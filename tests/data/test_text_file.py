"""Ids in a file: any slice equals that of the text in memory, and a file that changes is rejected."""

import codecs
import os

import numpy as np
import pytest
from hypothesis import given, strategies as st

from charjax.data import corpus as corpus_module, survey as survey_module, text_file, text_source
from charjax.data.corpus import Corpus, read_ids
from charjax.data.text_file import FileIds
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.host import memory

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=8)


def from_file(path, vocab="auto", stride=None):
    """Ids that stay in their file, with an index of every `stride`th character."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "room_for_text", lambda: 0)
        if stride:
            patch.setattr(text_file, "INDEX_STRIDE", stride)
            patch.setattr(survey_module, "INDEX_STRIDE", stride)
        return read_ids(path, vocab)


@given(TEXT, st.booleans(), st.sampled_from(["chars", "bytes"]), st.integers(1, 9), st.integers(1, 7), st.data())
def test_any_slice_equals_that_of_the_text_in_memory(tmp_path_factory, text, has_bom, vocab, stride, reads, data):
    path = tmp_path_factory.getbasetemp() / "slices.txt"
    path.write_bytes(has_bom * codecs.BOM_UTF8 + text.encode())
    expected, vocab, digest = read_ids(path, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "READ_BYTES", reads)
        ids, same_vocab, same_digest = from_file(path, vocab, stride)
    assert (same_vocab, same_digest) == (vocab, digest)
    assert (len(ids), ids.dtype) == (len(expected), expected.dtype)
    bounds = st.integers(-2, len(expected) + 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_file, "INDEX_STRIDE", stride)
        np.testing.assert_array_equal(ids[:], expected)
        for _ in range(3):
            part = slice(data.draw(bounds), data.draw(bounds))
            np.testing.assert_array_equal(ids[part], expected[part])
            assert ids[part].dtype == expected.dtype


@pytest.mark.parametrize("vocab", ["ascii", "chars", "bytes"])
def test_plain_ascii_needs_no_index(tmp_path, vocab):
    path = tmp_path / "ascii.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"one\r\ntwo\rthree\n")
    ids, _, _ = from_file(path, vocab)
    assert ids.file.index is None
    np.testing.assert_array_equal(ids[:], read_ids(path, vocab)[0])


def test_a_corpus_splits_without_reading(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Grüße aus Köln. " * 100_000)
    resident = Corpus.from_file(path, train_frac=0.7, memory_mb=2)
    lazy = Corpus.from_file(path, train_frac=0.7, memory_mb=1)
    assert isinstance(resident.train, np.ndarray)
    assert isinstance(lazy.train, FileIds)
    np.testing.assert_array_equal(lazy.train[:], resident.train)
    np.testing.assert_array_equal(lazy.validation[:], resident.validation)
    np.testing.assert_array_equal(lazy.validation[-100_005:-100_000], resident.validation[-100_005:-100_000])
    assert (lazy.sha256, lazy.vocab, lazy.path) == (resident.sha256, resident.vocab, resident.path)


def test_by_default_a_text_may_take_a_quarter_of_the_available_memory(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("x" * 1000)
    monkeypatch.setattr(memory, "system_memory", lambda: 4000)
    assert isinstance(read_ids(path)[0], np.ndarray)
    monkeypatch.setattr(memory, "system_memory", lambda: 3999)
    assert isinstance(read_ids(path)[0], FileIds)
    monkeypatch.setattr(memory, "system_memory", lambda: None)
    assert isinstance(read_ids(path)[0], np.ndarray)


@pytest.mark.parametrize("content", [b"shorter", b"longer" * 9, b"other of a size"])
def test_a_changed_file_is_rejected(tmp_path, content):
    path = tmp_path / "text.txt"
    path.write_bytes(b"fifteen letters")
    ids, _, _ = from_file(path)
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match="changed while it was in use"):
        ids[2:5]


@pytest.mark.parametrize(
    ("before", "after", "vocab"),
    [("äöü", "äö€", "chars"), ("äöü", "aou", "chars"), ("abc", "abd", Vocab.from_text("abc")), ("äöü", "äöß", "chars")],
)
def test_an_unnoticed_change_never_gives_ids_outside_the_vocabulary(tmp_path, before, after, vocab):
    """Size and time reveal almost every change; otherwise, content that cannot be the text is rejected."""
    path = tmp_path / "text.txt"
    path.write_bytes(before.encode() * 3)
    found = path.stat()
    ids, _, _ = from_file(path, vocab)
    path.write_bytes((after.encode() * 9)[: found.st_size])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(UserError, match="changed while it was in use"):
        ids[:]


def test_a_missing_file_raises_the_error_of_the_system(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"fifteen letters")
    ids, _, _ = from_file(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        ids[0:1]


def test_only_steps_of_one_are_supported(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"fifteen letters")
    with pytest.raises(ValueError, match="only be sliced with step 1, not 2"):
        from_file(path)[0][::2]
