"""Texts as they come: files, folders, patterns, compressed, JSON Lines, standard input, all like one plain file."""

import bz2
import gzip
import hashlib
import io
import json
import logging
import lzma
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given, strategies as st

from charjax.data import corpus as corpus_module, text_source
from charjax.data.corpus import Corpus, read_ids, read_pieces
from charjax.data.text_file import FileIds
from charjax.errors import UserError

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(texts, **options):
    """The text that a training would see."""
    corpus = Corpus.from_file(texts, vocab="chars", train_frac=0.5, **options)
    return corpus.vocab.decode(np.concatenate([corpus.train[:], corpus.validation[:]]))


@pytest.fixture
def folder(tmp_path):
    """A folder of four texts, one of them below, among files that are none."""
    files = {"a.txt": "one\n", "c.txt": "three", "sub/b.txt": "two", "sub/.hidden": "no", ".git/x.txt": "no", "e": ""}
    for name, content in files.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content)
    return tmp_path / "texts"


# ---- several files


def test_files_folders_and_patterns_are_read_in_order(folder):
    assert read([folder / "c.txt", folder / "a.txt"]) == "three\none\n"
    assert read(folder) == "one\nthree\ntwo"
    assert read(f"{folder}/*.txt") == "one\nthree"
    assert read(f"{folder}/**/*.txt") == "one\nthree\ntwo"
    assert read(folder / "*") == "one\nthree\ntwo"  # a folder that matches is read like one that is named
    assert read([folder / "c.txt", f"{folder}/[ab].txt", str(folder / "sub")]) == "three\none\ntwo"


@pytest.mark.parametrize(("separator", "expected"), [("", "one\nthreetwo"), ("<|>", "one\n<|>three<|>two")])
def test_a_separator_comes_between_two_files(folder, separator, expected):
    corpus = Corpus.from_file(folder, vocab="chars", separator=separator, train_frac=0.5)
    assert corpus.vocab.decode(np.concatenate([corpus.train, corpus.validation])) == expected
    assert corpus.sha256 == hashlib.sha256(expected.encode()).hexdigest()
    assert (corpus.name, corpus.path, corpus.paths) == ("texts", str(folder), (str(folder),))


def test_a_file_whose_name_looks_like_a_pattern_is_itself(folder):
    (folder / "[ab].txt").write_text("itself")
    assert read(folder / "[ab].txt") == "itself"


def test_byte_order_marks_of_all_files_are_left_out(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + name.encode() * 3)
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf")
    assert read([tmp_path / name for name in "abc"]) == "aaa\nbbb"


def test_arguments_that_name_no_text(tmp_path, folder):
    for texts, message in [
        ([], "path must not be an empty list"),
        (tmp_path / "*.md", r"no file matches .*\*\.md; correct the pattern"),
        ([folder, tmp_path / "nowhere"], "nowhere does not exist"),
        (["-", "-"], "standard input can be read only once"),
    ]:
        with pytest.raises(UserError, match=message):
            read(texts)


# ---- other forms


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("memory_mb", [None, 0])
def test_a_compressed_text_is_the_text(tmp_path, monkeypatch, ending, memory_mb):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    text = "Grüße aus Köln. " * 30_000
    plain, packed = tmp_path / "text.txt", tmp_path / f"text.txt{ending}"
    plain.write_text(text)
    packed.write_bytes(COMPRESS[ending](text[:999].encode()) + COMPRESS[ending](text[999:].encode()))  # as cat makes it
    expected, corpus = Corpus.from_file(plain), Corpus.from_file(packed, memory_mb=memory_mb)
    assert isinstance(corpus.train, FileIds) == (memory_mb == 0)
    np.testing.assert_array_equal(corpus.train[:], expected.train)
    np.testing.assert_array_equal(corpus.validation[-70_000:-3], expected.validation[-70_000:-3])
    assert (corpus.vocab, corpus.sha256) == (expected.vocab, expected.sha256)
    assert not list((tmp_path / "temporary").iterdir())  # the copy on disk has no name


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("keep", [0.7, 0])
def test_a_damaged_file_is_named(tmp_path, ending, keep):
    content = COMPRESS[ending](np.random.default_rng(0).bytes(5000))
    path = tmp_path / f"text{ending}"
    path.write_bytes(content[: round(keep * len(content))] or b"not compressed at all")
    with pytest.raises(UserError, match=rf"text\{ending} is damaged, or not {ending[1:]} \(.+\); create it again"):
        Corpus.from_file(path)


def test_zstd_needs_a_package(tmp_path, monkeypatch):
    (tmp_path / "text.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"text\.zst needs zstandard; install it with pip install 'charjax\[zstd\]'"):
        Corpus.from_file(tmp_path / "text.zst")


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines_are_read_by_their_text(tmp_path, ending):
    records = [{"id": 1, "text": "one"}, {"text": "two\n"}, {"text": ""}, {"text": "drei ü"}]
    content = "\n".join(map(json.dumps, records)).replace("\n", "\r\n\n").encode()
    path = tmp_path / f"texts.jsonl{ending}"
    path.write_bytes(COMPRESS.get(ending, bytes)(content))
    assert read(path) == "one\ntwo\ndrei ü"
    assert read(path, separator="--") == "one--two\n--drei ü"
    assert read([path, path], memory_mb=0) == "one\ntwo\ndrei ü\none\ntwo\ndrei ü"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"is not valid JSON \(Expecting ',' delimiter, column 13\)"),
        ('{"title": "a"}', 'is not an object with a string "text"'),
        ('{"text": 7}', 'is not an object with a string "text"'),
        ("[1]", 'is not an object with a string "text"'),
        ("[" * 100_000, "is not valid JSON"),
        ('{"text": "\\ud800"}', "contains half a surrogate pair"),
        (b'{"text": "\xff"}', "is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + (line.encode() if isinstance(line, str) else line))
    with pytest.raises(UserError, match=rf"texts\.jsonl line 3 {message}.*; correct or remove it"):
        Corpus.from_file(path)


def test_an_archive_is_no_text(tmp_path):
    (tmp_path / "books.tar.gz").write_bytes(gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + b"a" * 300))
    with pytest.raises(UserError, match=r"books\.tar\.gz is a tar archive, not UTF-8 text; extract it"):
        Corpus.from_file(tmp_path / "books.tar.gz")


@pytest.mark.parametrize("memory_mb", [None, 0])
def test_standard_input_is_a_text(monkeypatch, memory_mb):
    content = "vom Fließband\n" * 9
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    corpus = Corpus.from_file("-", memory_mb=memory_mb)
    assert corpus.vocab.decode(np.concatenate([corpus.train[:], corpus.validation[:]])) == content
    assert (corpus.name, corpus.sha256) == ("standard input", hashlib.sha256(content.encode()).hexdigest())


# ---- a validation text of its own


def test_a_validation_text_leaves_all_of_the_other_to_train_on(tmp_path):
    train, validation = tmp_path / "train.txt", tmp_path / "validation.txt.gz"
    train.write_text("aabb")
    validation.write_bytes(gzip.compress("abä".encode()))
    for memory_mb in (None, 0):
        corpus = Corpus.from_file(train, validation=validation, memory_mb=memory_mb)
        assert corpus.vocab.characters == "abä"
        assert corpus.vocab.decode(corpus.train[:]) == "aabb"
        assert corpus.vocab.decode(corpus.validation[:]) == "abä"
    assert corpus.sha256 == hashlib.sha256(b"aabb").hexdigest()
    assert corpus.validation_sha256 == hashlib.sha256("abä".encode()).hexdigest()
    assert corpus.validation_path == str(validation)


def test_texts_to_validate_on_that_are_rejected(folder):
    with pytest.raises(
        UserError, match=r"c\.txt is in both the training and the validation text; remove it from one of them"
    ):
        Corpus.from_file(folder, validation=folder / "c.txt")
    (folder / "x").write_text("x")
    with pytest.raises(UserError, match="x has 1 character; with --validation, each text needs at least 2"):
        Corpus.from_file(folder / "c.txt", validation=folder / "x")
    with pytest.raises(UserError, match="e is empty; use non-empty text"):
        Corpus.from_file(folder / "c.txt", validation=folder / "e")
    (folder / "x").write_text("abé")
    with pytest.raises(UserError, match=r"x line 1, column 3: 'é' .* is not in the ascii vocabulary"):
        Corpus.from_file(folder / "c.txt", validation=folder / "x", vocab="ascii")


# ---- places

PARTS = st.lists(st.text(st.sampled_from("ab\n€"), min_size=1), min_size=1, max_size=4)


@given(PARTS, st.integers(1, 7), st.booleans())
def test_an_unknown_character_is_found_in_its_file(tmp_path_factory, parts, size, has_mark):
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / f"{number}.txt" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_text("\ufeff" * has_mark + part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "READ_BYTES", size)
        wrong = next(((path, part) for path, part in zip(paths, parts, strict=True) if "€" in part), None)
        if wrong is None:
            assert len(read_ids(paths, "ascii")[0]) >= sum(map(len, parts))
            return
        with pytest.raises(UserError) as error:
            read_ids(paths, "ascii")
    before = wrong[1][: wrong[1].index("€")]
    place = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
    assert str(error.value).startswith(f"{wrong[0]} {place}: '€' (U+20AC) is not in the ascii vocabulary")


def test_other_places(tmp_path, folder, caplog):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "fine"}\n{"text": "as well"}\n{"text": "a\\nbé"}\n')
    with pytest.raises(UserError, match=r"texts\.jsonl line 3: 'é' \(U\+00E9\) is not in the ascii vocabulary"):
        Corpus.from_file([folder, texts], vocab="ascii")
    with pytest.raises(UserError, match="--separator line 1, column 2: 'é'"):
        Corpus.from_file(folder, vocab="ascii", separator="|é")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("a\nbé".encode()))
    with pytest.raises(UserError, match=r"b\.txt\.gz line 2, column 2: 'é'"):
        Corpus.from_file([folder, tmp_path / "b.txt.gz"], vocab="ascii")
    (tmp_path / "latin.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9")
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8: byte 0xe9 at offset 6; use --vocab bytes"):
        Corpus.from_file([folder, tmp_path / "latin.txt"], vocab="chars")
    with caplog.at_level(logging.INFO, logger="charjax"):
        assert Corpus.from_file([folder, tmp_path / "latin.txt"]).vocab.kind == "bytes"
    reason = f"1 byte of {folder} and 1 more is not UTF-8, 0xe9 at offset 6 of {tmp_path / 'latin.txt'}"
    assert caplog.messages == [f"vocabulary: bytes (256), because {reason}"]


def test_a_file_that_changes_is_named(folder, monkeypatch):
    monkeypatch.setattr(corpus_module, "PIECE", 2)
    pieces = read_pieces([folder / "a.txt", folder / "c.txt"])
    (folder / "c.txt").write_text("changed")
    with pytest.raises(UserError, match=r"c\.txt changed while it was in use; make a copy and use that"):
        list(pieces)
