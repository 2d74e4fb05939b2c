"""Corpus: any file becomes ids and splits, in little memory, and errors say where in the text they are."""

import bz2
import errno
import gzip
import hashlib
import logging
import lzma
import re
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from charjax.data import corpus as corpus_module, text_source
from charjax.data.corpus import Corpus, TextPieces, read_ids, read_pieces
from charjax.data.survey import UNICODE_SIZE, survey_texts
from charjax.data.text_source import TextSource, in_memory
from charjax.data.vocab import Vocab
from charjax.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=8)
READS = st.integers(1, 7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "text.txt"


def with_reads_of(size, action):
    """Runs an action with files read so many bytes at a time, so that characters straddle reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "READ_BYTES", size)
        patch.setattr(corpus_module, "PIECE", size)
        return action()


def pieces_of(content, vocab):
    (file,) = survey_texts([TextSource("x", [in_memory("x", content)])], vocab)
    return TextPieces(file)


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
    pieces = with_reads_of(size, lambda: pieces_of(content, "bytes"))
    assert with_reads_of(size, pieces.read_all).tobytes() == content
    assert pieces.vocab == Vocab.bytes()
    assert pieces.file.sha256 == hashlib.sha256(content).hexdigest()
    assert pieces.vocab.encode(text).tobytes() == content


@given(st.text(st.sampled_from("ab\né😀"), min_size=1), READS)
def test_the_first_unknown_character_is_reported_with_line_and_column(text, size):
    text += "é"
    before = text[: min(text.find(character) for character in "é😀" if character in text)]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    with pytest.raises(UserError) as error:
        with_reads_of(size, lambda: Corpus.from_text(text + "four", vocab="ascii", train_frac=0.5))
    first = text[len(before)]
    assert f"text line {line}, column {column}: {first!r} (U+{ord(first):04X}) is not in the ascii" in str(error.value)
    others = set("é😀") & set(text) - {first}
    assert ("and neither" in str(error.value)) == bool(others)


@given(st.binary(min_size=1), READS)
def test_invalid_utf8_is_reported_with_its_offset(content, size):
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as expected:
        byte = f"byte 0x{content[expected.start]:02x} at offset {expected.start}; use --vocab bytes"
        with pytest.raises(UserError, match=byte):
            with_reads_of(size, lambda: pieces_of(content, "chars"))


def test_a_file_gives_the_corpus_of_its_text(path):
    path.write_bytes("Zeile\r\nÄ\n".encode())
    ours, theirs = Corpus.from_file(path, train_frac=0.5), Corpus.from_text("Zeile\r\nÄ\n", train_frac=0.5)
    np.testing.assert_array_equal(ours.train, theirs.train)
    np.testing.assert_array_equal(ours.validation, theirs.validation)
    assert (ours.vocab, ours.sha256) == (theirs.vocab, theirs.sha256)
    assert (ours.name, ours.path, theirs.path) == ("text.txt", str(path), "")


def test_a_byte_order_mark_is_left_out(path):
    path.write_bytes(b"\xef\xbb\xbfplain")
    ids, vocab, _ = read_ids(path)
    assert (vocab.decode(ids), vocab.kind) == ("plain", "ascii")


@pytest.mark.parametrize(
    ("content", "kind", "why"),
    [
        (b"plain", "ascii", "is plain ASCII"),
        ("schön".encode(), "chars", "is UTF-8 beyond ASCII"),
        (b"\x7fELF\xff\xfe", "bytes", "2 bytes of "),
        (b"caf\xe9", "bytes", "1 byte of "),
    ],
)
def test_auto_chooses_a_vocabulary_and_logs_why(path, caplog, content, kind, why):
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
        (b"x", {}, "has 1 character; at least 4 are needed"),
        (b"xyz", {}, "has 3 characters; at least 4 are needed"),
        (b"x" * 10, {}, "leaves 9 of the 10 characters in .* to train on and 1 to validate"),
        (b"xxxx", {"vocab": "latin"}, "vocab must be auto, ascii, chars or bytes, not 'latin'"),
        (b"xxxx", {"train_frac": 1.0}, "train_frac must be between 0 and 1"),
        (b"xxxx", {"train_frac": 0}, "train_frac must be between 0 and 1"),
    ],
)
def test_invalid_texts_and_settings_are_rejected(path, content, options, message):
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Corpus.from_file(path, **options)


def test_a_missing_file_and_a_folder_are_rejected(path, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Corpus.from_file(path)
    with pytest.raises(UserError, match="contains no files"):
        Corpus.from_file(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        UserError, match="is the folder of a run or model, not of text; to train on from it, use --init-"
    ):
        Corpus.from_file(tmp_path)


def test_an_error_in_reading_names_the_file(path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    path.write_text("a flat white")
    monkeypatch.setattr(text_source, "os", SimpleNamespace(fstat=fail))
    with pytest.raises(OSError, match=r"Input/output error: .*text\.txt"):
        Corpus.from_file(path)


@pytest.mark.parametrize("vocab", ["ascii", "chars", "bytes"])
def test_reading_takes_little_more_memory_than_the_text(path, vocab):
    content = np.random.default_rng(0).integers(32, 127, 10_000_000).astype(np.uint8).tobytes()
    path.write_bytes(content)
    tracemalloc.start()
    ids, _, _ = with_reads_of(1 << 19, lambda: read_ids(path, vocab))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids.nbytes == len(content)
    # Beside the ids: a chunk as bytes and as int32, and tables of one and of four bytes per code point.
    assert peak < (1.3 if vocab == "bytes" else 2.3) * len(content)


@given(TEXT, READS, st.sampled_from(["auto", "chars", "bytes"]))
def test_a_file_and_its_text_agree_for_any_text(tmp_path_factory, text, size, vocab):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    read = with_reads_of(size, lambda: Corpus.from_file(path, vocab=vocab, train_frac=0.5))
    given_text = Corpus.from_text(text, vocab=vocab, train_frac=0.5)
    np.testing.assert_array_equal(read.train, given_text.train)
    np.testing.assert_array_equal(read.validation, given_text.validation)
    assert (read.vocab, read.sha256) == (given_text.vocab, given_text.sha256)


def test_carriage_returns_are_kept(path):
    path.write_bytes(b"one\r\ntwo\rthree\n")
    ids, vocab, _ = read_ids(path)
    assert vocab.decode(ids) == "one\r\ntwo\rthree\n"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_only_the_first_byte_order_mark_is_left_out(size):
    text = "ab\ufeffcdefgh"
    corpus = with_reads_of(size, lambda: Corpus.from_text("\ufeff" + text, vocab="chars", train_frac=0.5))
    assert corpus.vocab.decode(np.concatenate([corpus.train, corpus.validation])) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain\x7f", "vocabulary: ascii (128 characters), because {} is plain ASCII"),
        (b"abc\xc2\x80", "vocabulary: chars (4 characters), because {} is UTF-8 beyond ASCII"),
        (
            b"ab\xff\xc3c\xfe",
            "vocabulary: bytes (256), because 3 bytes of {} are not UTF-8, the first 0xff at offset 2",
        ),
    ],
    ids=["ascii", "chars", "bytes"],
)
def test_auto_logs_its_choice_and_the_file(path, caplog, content, message):
    path.write_bytes(content)
    with caplog.at_level(logging.INFO, logger="charjax"):
        read_ids(path)
    assert caplog.messages == [message.format(path)]


@pytest.mark.parametrize("vocab", ["ascii", "chars", "bytes"])
def test_a_vocabulary_asked_for_is_not_logged(path, caplog, vocab):
    path.write_bytes(b"plain")
    with caplog.at_level(logging.INFO, logger="charjax"):
        read_ids(path, vocab)
    assert caplog.messages == []


def test_the_default_vocabulary_is_auto(path):
    path.write_bytes(b"abcdefgh")
    assert Corpus.from_file(path, train_frac=0.5).vocab == Vocab.ascii()


@pytest.mark.parametrize("train_frac", [0.2, 0.8])
def test_a_split_may_be_as_short_as_two(train_frac):
    corpus = Corpus.from_text("abcdefghij", train_frac=train_frac)
    assert min(len(corpus.train), len(corpus.validation)) == 2


def test_a_training_split_of_one_is_rejected():
    with pytest.raises(UserError, match="leaves 1 of the 10 characters in text to train on and 9 to validate"):
        Corpus.from_text("abcdefghij", train_frac=0.1)


def test_the_invalid_byte_is_reported(path):
    path.write_bytes(b"ab\xffcd")
    with pytest.raises(UserError, match=r"text\.txt is not UTF-8: byte 0xff at offset 2; use --vocab bytes"):
        Corpus.from_file(path, vocab="chars")


def test_an_incomplete_character_at_the_end_is_reported(path):
    path.write_bytes("né".encode()[:-1])
    with pytest.raises(UserError, match="byte 0xc3 at offset 1"):
        Corpus.from_file(path, vocab="ascii")


def test_the_first_unknown_character_is_the_first_in_the_text():
    with pytest.raises(UserError) as error:
        Corpus.from_text("ab\n😀é😀", vocab="ascii")
    assert str(error.value) == (
        "text line 2, column 1: '😀' (U+1F600) is not in the ascii vocabulary, and neither is 'é' (U+00E9); "
        "use --vocab auto, chars or bytes"
    )


@pytest.mark.parametrize("train_frac", [0, 1, -0.5, float("nan"), "half"])
def test_the_fraction_is_checked_for_texts_too(train_frac):
    with pytest.raises(UserError, match="train_frac must be between 0 and 1"):
        Corpus.from_text("abcdefgh", train_frac=train_frac)


def test_the_path_is_absolute(path, monkeypatch):
    path.write_bytes(b"abcdefgh")
    monkeypatch.chdir(path.parent)
    assert Corpus.from_file("text.txt", train_frac=0.5).path == str(path.resolve())


def test_the_digest_is_the_sha256_of_the_file(path):
    path.write_bytes(b"\xef\xbb\xbfabcdefgh")
    digest = hashlib.sha256(b"\xef\xbb\xbfabcdefgh").hexdigest()
    assert Corpus.from_file(path, train_frac=0.5).sha256 == digest


@pytest.mark.parametrize("vocab", ["auto", "ascii", "chars"])
def test_a_byte_order_mark_alone_is_an_empty_text(path, vocab):
    path.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(UserError, match=r"text\.txt is empty"):
        Corpus.from_file(path, vocab=vocab)


def test_escaped_bytes_are_restored():
    corpus = Corpus.from_text("\udcffabc", vocab="bytes", train_frac=0.5)
    assert corpus.train.tolist() == [255, 97]


def test_half_a_surrogate_pair_is_rejected():
    with pytest.raises(UserError, match=r"character 2 of the text is U\+D800, half a surrogate pair"):
        Corpus.from_text("ab\ud800cdefg")
    with pytest.raises(UserError, match=r"character 0 of the text is U\+D800"):
        Vocab.bytes().encode("\ud800")


@given(st.text(st.sampled_from("ab\né😀"), min_size=1), READS, st.sampled_from(["chars", "bytes"]))
def test_pieces_joined_are_the_whole_text(tmp_path_factory, text, size, vocab):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_text(text, encoding="utf-8")
    ids, chosen, sha256 = read_ids(path, vocab)
    pieces = with_reads_of(size, lambda: read_pieces(path, vocab))
    for _ in range(2):
        parts = with_reads_of(size, lambda: list(pieces))
        assert all(0 < len(part) <= size and part.dtype == chosen.dtype for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), ids)
    assert (pieces.size, pieces.vocab, pieces.file.sha256) == (len(ids), chosen, sha256)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"plain\nso caf\xc3\xa9", b"abc\xff"])
def test_read_pieces_rejects_what_read_ids_rejects(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError) as whole:
        read_ids(path, Vocab.ascii(), on_unknown="error")
    with pytest.raises(UserError) as pieces:
        read_pieces(path, Vocab.ascii())
    assert str(pieces.value) == str(whole.value)
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_pieces(path.parent / "nowhere")


@pytest.mark.parametrize(
    ("vocab", "content"),
    [("chars", b"abcd"), ("chars", b"abx"), ("chars", b"ab"), ("chars", b"a\xff\xff"), ("bytes", b"abcd"),
     ("bytes", b"ab")],
)  # fmt: skip
def test_a_change_between_two_readings_is_noticed(path, vocab, content):
    path.write_text("abc")
    pieces = read_pieces(path, vocab)
    path.write_bytes(content)
    with pytest.raises(UserError, match="changed while it was in use"):
        list(pieces)


def test_reading_in_pieces_takes_the_memory_of_a_piece(path, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE", 1 << 14)
    path.write_bytes("Grüße, ".encode() * 500_000)
    list(pieces := read_pieces(path))
    tracemalloc.start()
    assert sum(map(len, pieces)) == 3_500_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * UNICODE_SIZE * 4


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            gzip.compress(b"a flat white", mtime=0),
            "is compressed with gzip, not UTF-8 text; rename it to end in .gz, or decompress it (gunzip)",
        ),
        (lzma.compress(b"a flat white"), "is compressed with xz"),
        (bz2.compress(b"a flat white"), "is compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed with zstd"),
        (b"PK\3\4\x14\0\x06\0[Content_Types].xml", "is a ZIP archive or an office document"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "is a PDF"),
        ("a flat white".encode("utf-16"), "is in UTF-16, not UTF-8 text; convert it (iconv -f UTF-16 -t UTF-8)"),
        ("a flat white".encode("utf-16-le"), "(iconv -f UTF-16LE -t UTF-8)"),
        ("a flat white".encode("utf-16-be"), "(iconv -f UTF-16BE -t UTF-8)"),
        ("a flat white".encode("utf-32"), "is in UTF-32"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a binary file, e.g. an image, not UTF-8 text; leave it out"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a binary file"),
    ],
)
def test_files_that_are_not_texts_are_recognized(path, content, what):
    path.write_bytes(content)
    for vocab in ("auto", "ascii", "chars", Vocab.ascii()):
        with pytest.raises(UserError, match=re.escape(what)) as raised:
            Corpus.from_file(path, vocab=vocab)
        assert str(raised.value).endswith("or use --vocab bytes to use its bytes as they are")
    assert Corpus.from_file(path, vocab="bytes", train_frac=0.5).vocab == Vocab.bytes()


def test_a_few_zeros_are_text(path):
    # The last character ends beyond the bytes that are looked at.
    for content in (b"one\0two\0three", b"\0\0\0\0\0", b"\0" + b"x" * 1022 + "Ü".encode() + b"\0" * 9):
        path.write_bytes(content)
        assert Corpus.from_file(path, train_frac=0.5).vocab.kind in ("ascii", "chars")
