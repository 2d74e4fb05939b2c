"""Corpus: any file to ids and splits, in little memory, and every mistake named with its place."""

import hashlib
import logging
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charjax import corpus as corpus_module
from charjax.corpus import Corpus, read_ids
from charjax.errors import UserError
from charjax.vocab import Vocab

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=8)
READS = st.integers(1, 7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "text.txt"


def with_reads_of(size, action):
    """Runs an action with files read so many bytes at a time, so that characters straddle reads."""
    before = corpus_module.READ_BYTES
    corpus_module.READ_BYTES = size
    try:
        return action()
    finally:
        corpus_module.READ_BYTES = before


@given(TEXT, st.floats(0.3, 0.7), READS)
def test_the_splits_are_the_text(text, train_frac, size):
    text = text.lstrip("\ufeff") + "tail"
    corpus = with_reads_of(size, lambda: Corpus.from_text(text, vocab="chars", train_frac=train_frac))
    cut = round(train_frac * len(text))
    assert corpus.vocab.decode(corpus.train) == text[:cut]
    assert corpus.vocab.decode(corpus.validation) == text[cut:]
    assert corpus.vocab == Vocab.from_text(text)


@given(st.binary(min_size=8), READS)
def test_any_bytes_can_be_read(content, size):
    text = content.decode("utf-8", errors="surrogateescape")
    stream = lambda: corpus_module._encode_stream(lambda: corpus_module.io.BytesIO(content), "x", "bytes")  # noqa: E731
    ids, vocab, sha256 = with_reads_of(size, stream)
    assert ids.tobytes() == content
    assert vocab == Vocab.bytes()
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert vocab.encode(text).tobytes() == content


@given(st.text(st.sampled_from("ab\né😀"), min_size=1), READS)
def test_the_first_character_that_is_unknown_is_named_with_its_place(text, size):
    text += "é"
    before = text[: min(text.find(character) for character in "é😀" if character in text)]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    with pytest.raises(UserError) as error:
        with_reads_of(size, lambda: Corpus.from_text(text + "four", vocab="ascii", train_frac=0.5))
    first = text[len(before)]
    assert f"text line {line}, column {column}: {first!r} (U+{ord(first):04X}) is not in the ascii" in str(error.value)
    others = set("é😀") & set(text) - {first}
    assert ("and also" in str(error.value)) == bool(others)


@given(st.binary(min_size=1), READS)
def test_invalid_utf8_is_named_with_its_offset(content, size):
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as expected:
        stream = lambda: corpus_module._encode_stream(lambda: corpus_module.io.BytesIO(content), "x", "chars")  # noqa: E731
        with pytest.raises(UserError, match=f"at offset {expected.start}; use --vocab bytes"):
            with_reads_of(size, stream)


def test_a_file_is_the_same_as_its_text(path):
    path.write_bytes("Zeile\r\nÄ\n".encode())
    ours, theirs = Corpus.from_file(path, train_frac=0.5), Corpus.from_text("Zeile\r\nÄ\n", train_frac=0.5)
    np.testing.assert_array_equal(ours.train, theirs.train)
    np.testing.assert_array_equal(ours.validation, theirs.validation)
    assert (ours.vocab, ours.sha256) == (theirs.vocab, theirs.sha256)
    assert (ours.name, ours.path, theirs.path) == ("text.txt", str(path), "")


def test_a_byte_order_mark_is_left_out(path):
    path.write_bytes(b"\xef\xbb\xbfplain")
    ids, vocab, _ = read_ids(path)
    assert (vocab.decode(ids), vocab.kind) == ("plain", "chars" if vocab.kind == "chars" else "ascii")
    assert vocab.kind == "ascii"


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"plain", "ascii", "is plain ASCII"),
        ("schön".encode(), "chars", "is UTF-8 beyond ASCII"),
        (b"\x7fELF\xff\xfe", "bytes", "is not UTF-8"),
    ],
)
def test_auto_chooses_and_says_so(path, caplog, content, kind, why):
    path.write_bytes(content)
    with caplog.at_level(logging.INFO, logger="charjax"):
        _, vocab, _ = read_ids(path)
    assert vocab.kind == kind
    assert kind in caplog.text
    assert why in caplog.text


def test_a_vocabulary_may_be_given(path):
    path.write_text("abba")
    ids, vocab, _ = read_ids(path, Vocab.from_text("abc"))
    assert (ids.tolist(), vocab.size) == ([0, 1, 1, 0], 3)
    path.write_text("abx")
    with pytest.raises(UserError, match=r"line 1, column 3: 'x' .* not in the chars vocabulary"):
        read_ids(path, Vocab.from_text("abc"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "is empty"),
        (b"x", {}, "has 1 characters; a text needs at least 4"),
        (b"xyz", {}, "has 3 characters; a text needs at least 4"),
        (b"x" * 10, {}, "leaves 9 of .* 10 characters to train on and 1 to validate"),
        (b"xxxx", {"vocab": "latin"}, "vocab must be auto, ascii, chars or bytes, not 'latin'"),
        (b"xxxx", {"train_frac": 1.0}, "train_frac must be between 0 and 1"),
        (b"xxxx", {"train_frac": 0}, "train_frac must be between 0 and 1"),
    ],
)
def test_texts_and_settings_that_will_not_do(path, content, options, message):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Corpus.from_file(path, **options)


def test_no_file_and_a_folder(path, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Corpus.from_file(path)
    with pytest.raises(UserError, match="is a folder"):
        Corpus.from_file(tmp_path)


@pytest.mark.parametrize("vocab", ["ascii", "chars", "bytes"])
def test_reading_takes_little_more_memory_than_the_text(path, vocab):
    content = np.random.default_rng(0).integers(32, 127, 40_000_000).astype(np.uint8).tobytes()
    path.write_bytes(content)
    tracemalloc.start()
    ids, _, _ = read_ids(path, vocab)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids.nbytes == len(content)
    # A piece of 4 MB stands as bytes, text and code points beside the ids; and "seen" takes one byte per code point.
    assert peak < 2.3 * len(content)
