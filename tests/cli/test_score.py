"""`charjax score`: the loss is that of training, hostile text stays text, and mistakes are one line."""

import functools
import math
import re
import tracemalloc

import jax
import numpy as np
import optax
import pytest
from helpers.command_line import fails, shows
from helpers.painted_page import PaintedPage
from helpers.small_run import TEXT, save_run, small_model
from rich.cells import cell_len

from charjax import Corpus, evaluate, load_model, score
from charjax.analysis import scored_characters
from charjax.cli.commands import score as score_module
from charjax.data import corpus as corpus_module
from charjax.data.batching import make_streams
from charjax.data.vocab import Vocab
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.rendering.visible_text import name_character
from charjax.train_state import init_train_state
from charjax.training.evaluate import make_eval_step
from charjax.training.step import make_train_step

HOSTILE = (
    "<script>alert(1)</script> \"quoted\" & 'so' --> <!-- x --> ]]> &amp; &#65; </div></b></i>"
    "<img src=https://example.org onerror=alert(1)>\r\n\t\0\x1b[31m\x07\x1b]0;title\x07\x7f"
)
BEYOND_ASCII = "\x85\x9b\u2028\u2029\u202e\u2066\u200d\ufeff\ufffe é日\U0001f600\xa0"
ELEMENTS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "figure",
    "figcaption",
    "svg",
    "path",
    "table",
    "tr",
    "th",
    "td",
    "p",
    "b",
    "i",
    "a",
    "div",
    "script",
}
ONE_DEVICE = make_mesh(jax.devices()[:1])


def save(folder, vocab, *, spoil=1.0):
    """Saves an untrained run with large weights, so that its predictions differ."""
    corpus = Corpus.from_text(TEXT if vocab.kind != "chars" else vocab.characters * 9, vocab=vocab)
    larger = functools.partial(jax.tree.map, lambda leaf: 3 * spoil * leaf)
    return save_run(folder, corpus, small_model(corpus, hidden_dim=6), larger)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("score") / "run", Vocab.ascii())


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("score") / "bytes", Vocab.bytes())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT[:1000])
    return path


def facts(out):
    """Returns the lines above the table as a dictionary."""
    rows = (line.split(maxsplit=1) for line in out.split("\n\nThe most surprising")[0].splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def loss(out):
    return float(facts(out)["loss"].split()[0])


def rows(out):
    """Returns the table: position, bits, probability and character, and the lines below each."""
    lines = out.partition("\n\nThe most surprising places")[2].split("\n")[3:-1]
    return [(lines[at].split(maxsplit=4), *lines[at + 1 : at + 3]) for at in range(0, len(lines), 3)]


def page_of(capsys, tmp_path, *argv):
    path = tmp_path / "page.html"
    shows(capsys, "score", *argv, "--html", path)
    return PaintedPage(path.read_bytes().decode())


# ---- the loss


def test_the_loss_is_that_of_evaluation(run, text, capsys):
    out = shows(capsys, "score", run, text)
    model, params, vocab = load_model(run)
    ids = vocab.encode(TEXT[:1000])
    assert loss(out) == pytest.approx(evaluate(model, params, ids, mesh=ONE_DEVICE), abs=1e-5)
    streams = put_streams(make_streams(ids, batch_size=1, seq_len=999), ONE_DEVICE)
    metrics, _ = make_eval_step(model, seq_len=999, mesh=ONE_DEVICE)(params, streams)
    assert loss(out) == pytest.approx(float(metrics.nats.sum()) / 999, abs=1e-5)
    assert facts(out)["characters"] == "1,000; the first does not count"
    assert float(facts(out)["perplexity"]) == pytest.approx(math.exp(loss(out)), rel=1e-5)
    assert float(facts(out)["bits/char"]) == pytest.approx(loss(out) / math.log(2), abs=1e-4)
    assert facts(out)["read"] == "in one pass"


def test_the_loss_is_that_of_a_training_step_with_a_learning_rate_of_zero(run, tmp_path, capsys):
    model, params, vocab = load_model(run)
    length = 64
    path = tmp_path / "window.txt"
    path.write_text(TEXT[: length + 1])
    model = model.clone(dropout=0.0)
    optimizer = optax.sgd(0.0)
    state = init_train_state(jax.random.key(0), model, optimizer, batch_size=1, mesh=ONE_DEVICE)
    state = state.replace(params=jax.tree.map(np.asarray, params))
    streams = put_streams(make_streams(vocab.encode(TEXT[: length + 1]), batch_size=1, seq_len=length), ONE_DEVICE)
    _, metrics = make_train_step(model, optimizer, seq_len=length, mesh=ONE_DEVICE)(state, streams)
    assert int(metrics.chars) == length
    assert loss(shows(capsys, "score", run, path)) == pytest.approx(float(metrics.nats) / length, abs=1e-5)


def test_the_size_of_chunks_does_not_matter_at_all(run, text, tmp_path, capsys, monkeypatch):
    options = ("--html", tmp_path / "new" / "page.html", "--paint", "300", "--separator", "\n")
    found = []
    for read_bytes, block in ((1 << 22, 4096), (7, 1), (100, 64), (1000, 4096)):
        monkeypatch.setattr(corpus_module, "PIECE", read_bytes)
        monkeypatch.setattr(scored_characters, "BLOCK", block)
        found.append((shows(capsys, "score", run, text, *options), (tmp_path / "new" / "page.html").read_bytes()))
    assert all(each == found[0] for each in found)


def test_streams_are_close(run, text, capsys):
    exact, close = shows(capsys, "score", run, text), shows(capsys, "score", run, text, "--streams", "3")
    assert loss(close) == pytest.approx(loss(exact), abs=1e-3)
    assert facts(close)["read"] == "as 3 streams; use --streams 1 for an exact result, in one pass"


def test_long_texts_are_read_as_streams_unless_the_user_says(run, text, capsys, monkeypatch):
    work = 1000 * sum(leaf.size for leaf in jax.tree.leaves(load_model(run)[1]))
    monkeypatch.setattr(score_module, "MOST_WORK_IN_ONE_PASS", work - 1)
    assert facts(shows(capsys, "score", run, text))["read"].startswith(f"as {score_module.STREAMS} streams")
    assert facts(shows(capsys, "score", run, text, "--streams", "1"))["read"] == "in one pass"
    monkeypatch.setattr(score_module, "MOST_WORK_IN_ONE_PASS", work)
    assert facts(shows(capsys, "score", run, text))["read"] == "in one pass"


def test_every_document_is_read_on_its_own(run, text, capsys):
    documents = TEXT[:1000].split("\n")
    out = shows(capsys, "score", run, text, "--separator", "\n")
    model, params, vocab = load_model(run)
    nats = [score(model, params, vocab.encode(document)[None]) for document in TEXT[:1000].splitlines(keepends=True)]
    assert loss(out) == pytest.approx(np.concatenate(nats, axis=1).mean(), abs=1e-5)
    assert facts(out)["documents"] == str(len(documents))
    assert facts(out)["characters"] == f"1,000; the {len(documents)} that begin a document do not count"


def test_bytes_and_characters_are_both_reported(bytes_run, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("Grüße aus Köln, 日本\n")
    model, params, vocab = load_model(bytes_run)
    nats = score(model, params, vocab.encode(path.read_text())[None])
    printed = facts(shows(capsys, "score", bytes_run, path))
    assert printed["characters"] == "19; the first does not count"
    assert printed["loss"] == f"{nats.mean(dtype=np.float64):.6f} nats/byte"
    assert float(printed["bits/byte"]) == pytest.approx(nats.mean() / math.log(2), abs=1e-4)
    assert float(printed["bits/char"]) == pytest.approx(nats.sum() / 18 / math.log(2), abs=1e-3)


def test_characters_of_several_bytes(tmp_path, capsys):
    run = save(tmp_path / "run", Vocab.from_text("Grüße aKöln,日本\n"))
    path = tmp_path / "text.txt"
    path.write_text("Grüße\n日本")
    printed = facts(shows(capsys, "score", run, path))
    assert float(printed["bits/byte"]) == pytest.approx(float(printed["bits/char"]) * 7 / 13, abs=1e-4)
    path.write_text("Gra\n")
    assert "bits/byte" not in facts(shows(capsys, "score", run, path))


# ---- places


def test_the_most_surprising_places(run, text, capsys):
    model, params, vocab = load_model(run)
    nats = score(model, params, vocab.encode(TEXT[:1000])[None])[0]
    out = shows(capsys, "score", run, text, "--worst", "4", "--top", "2")
    found = rows(out)
    assert len(found) == 4
    (where, bits, probability, name, expected), around, mark = found[0]
    at = int(nats.argmax()) + 1
    line, column = TEXT[:at].count("\n") + 1, at - TEXT[:at].rfind("\n")
    assert where == f"{line}:{column}"
    assert name == name_character(TEXT[at])
    assert float(bits) == pytest.approx(nats.max() / math.log(2), abs=0.006)
    assert float(probability.removesuffix("%")) == pytest.approx(100 * math.exp(-nats.max()), rel=0.01)
    assert around[mark.index("^")] == name
    assert TEXT[at + 1 : at + 20].replace("\n", "↵") in around
    assert len(re.findall(r"[\d.e-]+%", expected)) == 2
    assert sorted((float(row[0][1]) for row in found), reverse=True) == [float(row[0][1]) for row in found]
    assert len({row[0][0] for row in found}) == 4


def test_zero_places(run, text, capsys):
    assert "most surprising" not in shows(capsys, "score", run, text, "--worst", "0")


def test_carets_are_below_wide_characters_and_names(bytes_run, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("日本\x1b" * 12)
    for (_, _, _, name, _), around, mark in rows(shows(capsys, "score", bytes_run, path, "--worst", "9")):
        assert cell_len(around) <= 2 * 36 + 4 + 6
        columns = mark.index("^")
        before = next(n for n in range(len(around)) if cell_len(around[:n]) == columns)
        assert around[before:].startswith(name)
        assert mark.count("^") == cell_len(name)


# ---- colors


def test_the_page_takes_at_most_25_bytes_per_character(run, tmp_path, capsys):
    """Also where, as with this model, nearly every character has another color than its neighbors."""
    (tmp_path / "long.txt").write_text((TEXT * 9)[:20_000])
    shows(capsys, "score", run, tmp_path / "long.txt", "--html", tmp_path / "long.html", "--worst", 0)
    assert (tmp_path / "long.html").stat().st_size <= 25 * 20_000


def test_without_colors_the_text_has_marks(run, text, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    out = shows(capsys, "score", run, text, "--paint", "20")
    colored, _, rest = out.partition("\n\nmodel ")
    assert rest
    legend, empty, line, marks = colored.splitlines()
    assert legend == "surprise in bits under each character, on the scale ▁▂▃▄▅▆▇█: ▁ is 0, █ is 10"
    assert (empty, line) == ("", TEXT[:20])
    assert re.fullmatch(" [▁▂▃▄▅▆▇█]{19}", marks)
    assert "\x1b" not in out


def test_a_terminal_with_colors_gets_them(run, text, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = shows(capsys, "score", run, text, "--paint", "20")
    assert "\x1b[" in out
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert plain.splitlines()[2] == TEXT[:20]
    assert "▅" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shows(capsys, "score", run, text, "--paint", "20")


def test_coloring_begins_at_a_line(run, text, tmp_path, capsys):
    out = shows(capsys, "score", run, text, "--paint", "10", "--start-line", "3")
    assert out.splitlines()[2] == TEXT.splitlines()[2][:10]
    page = page_of(capsys, tmp_path, run, text, "--html-chars", "100", "--start-line", "3")
    begin = len("".join(TEXT.splitlines(keepends=True)[:2]))
    assert page.text == TEXT[begin : begin + 100]
    assert "100 of 1,000 characters, from line 3 on" in page.facts
    assert [value for tag, name, value in page.attributes if tag == "i"] == ["3", "4"]
    links = [value for tag, _, value in page.attributes if tag == "a"]
    assert set(links) <= {"#3", "#4"}


# ---- the page


def test_the_page_holds_the_text_with_its_surprise(run, text, tmp_path, capsys):
    page = page_of(capsys, tmp_path, run, text, "--top", "3")
    assert page.text == TEXT[:1000]
    assert "all characters" in page.facts
    model, params, vocab = load_model(run)
    nats = score(model, params, vocab.encode(TEXT[:1000])[None])[0]
    assert page.tips[0][1] == f"{TEXT[0]}  nothing comes before it, so it does not count"
    for (character, tip), expected in zip(page.tips[1:], nats.tolist(), strict=True):
        first, *others = tip.split("\n")
        name, bits, probability = re.fullmatch(r"(.+)  ([\d.]+) bits  ([\d.e-]+)%", first).groups()
        assert name == name_character(character)
        assert float(bits) == pytest.approx(expected / math.log(2), abs=0.006)
        assert float(probability) == pytest.approx(100 * math.exp(-expected), rel=0.01)
        assert len(others) == 3
        assert not any(other.startswith(f"{name}  ") for other in others)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("i", "id")] == [
        str(number) for number in range(1, TEXT[:1000].count("\n") + 2)
    ]


def check_is_harmless(page, content):
    assert not page.open
    assert set(page.elements) <= ELEMENTS
    assert page.elements.count("script") == 1
    assert not any(name.startswith("on") or name in ("src", "style") for _, name, _ in page.attributes)
    assert not any("//" in (value or "") for _, name, value in page.attributes if name != "title")
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    policy = next(value for _, name, value in page.attributes if name == "content" and "script-src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", content)


def test_hostile_text_stays_text(run, tmp_path, capsys):
    path = tmp_path / "hostile <b>&.txt"
    path.write_bytes((HOSTILE * 3).encode())
    out = shows(capsys, "score", run, path, "--html", tmp_path / "page.html", "--paint", "500", "--worst", "30")
    assert not set(out) & {*map(chr, range(32)), "\x7f"} - {"\n"}
    assert "U+001B" in out
    content = (tmp_path / "page.html").read_bytes().decode()
    page = PaintedPage(content)
    check_is_harmless(page, content)
    assert page.text == HOSTILE * 3


def test_hostile_bytes_stay_text(bytes_run, tmp_path, capsys):
    content = (HOSTILE + BEYOND_ASCII).encode() + b"\xff\xed\xa0\x80\xe6\x97" + HOSTILE.encode() + b"\xc3"
    path = tmp_path / "hostile.bin"
    path.write_bytes(content)
    out = shows(capsys, "score", bytes_run, path, "--html", tmp_path / "page.html", "--paint", "500", "--worst", "90")
    assert not set(out) & set("\0\x1b\x07\x7f\x85\x9b\u2028\u2029\u202e\u2066\udcff\r")
    assert "0xFF" in out
    written = (tmp_path / "page.html").read_bytes().decode()
    page = PaintedPage(written)
    check_is_harmless(page, written)
    assert page.text.encode("utf-8", errors="surrogateescape") == content
    assert any(tip.startswith("日  ") and "\ninstead of 0x" in tip for _, tip in page.tips)


# ---- memory


def test_a_longer_text_needs_no_more_memory(run, tmp_path, capsys, monkeypatch):
    """The scores and the page of the longer text would be over 500 kB more, if they were kept."""
    monkeypatch.setattr(corpus_module, "PIECE", 2000)
    monkeypatch.setattr(scored_characters, "BLOCK", 512)
    path, page, peaks = tmp_path / "long.txt", tmp_path / "page.html", []
    path.write_text(TEXT)
    options = (run, path, "--html", page, "--paint", "100")
    shows(capsys, "score", *options)
    for repeated in (1, 3):
        path.write_text(TEXT * repeated)
        tracemalloc.start()
        shows(capsys, "score", *options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert page.stat().st_size > 200_000
    assert peaks[1] < peaks[0] + 200_000


# ---- mistakes


def test_files_that_cannot_be_scored(run, tmp_path, capsys):
    assert "does not exist" in fails(capsys, "score", run, tmp_path / "nowhere.txt")
    assert "contains no files" in fails(capsys, "score", run, tmp_path)
    path = tmp_path / "text.txt"
    path.write_text("")
    assert "is empty" in fails(capsys, "score", run, path)
    path.write_text("a")
    assert "has 1 character, which leaves nothing to predict" in fails(capsys, "score", run, path)
    path.write_text("so\ncafé")
    assert "line 2, column 4: 'é' (U+00E9) is not in the ascii vocabulary" in fails(capsys, "score", run, path)
    path.write_text("aa")
    assert "every character of" in fails(capsys, "score", run, path, "--separator", "a")


def test_a_run_that_does_not_exist(tmp_path, text, capsys):
    assert str(tmp_path / "nowhere") in fails(capsys, "score", tmp_path / "nowhere", text)


@pytest.mark.parametrize(
    ("flag", "least"),
    [("--worst", 0), ("--top", 0), ("--paint", 0), ("--html-chars", 1), ("--start-line", 1), ("--streams", 1)],
)
def test_numbers_out_of_range(run, text, capsys, flag, least):
    assert f"{flag} must be a whole number of at least {least}, not -2" in fails(capsys, "score", run, text, flag, "-2")
    assert flag in fails(capsys, "score", run, text, flag, "x")


def test_options_that_the_text_does_not_fit(run, text, capsys):
    assert "--streams must be at most 4096, not 5000" in fails(capsys, "score", run, text, "--streams", "5000")
    assert f"--start-line must be at most 12, the number of lines in {text}" in fails(
        capsys, "score", run, text, "--start-line", "13"
    )
    assert "separator must be at least one character" in fails(capsys, "score", run, text, "--separator=")
    assert "--separator: not in the ascii vocabulary: 'é'" in fails(capsys, "score", run, text, "--separator", "é")


def test_paths_where_no_page_can_be_written(run, text, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert "Not a directory" in fails(capsys, "score", run, text, "--html", text / "page.html")
    assert "is a folder; name a file in it" in fails(capsys, "score", run, text, "--html", tmp_path)
    assert "is a pipe or device" in fails(capsys, "score", run, text, "--html", "/dev/null")
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_went_wrong_leaves_no_page(text, tmp_path, capsys):
    run = save(tmp_path / "run", Vocab.ascii(), spoil=math.nan)
    message = fails(capsys, "score", run, text, "--html", tmp_path / "page.html")
    assert message == "parameter head.bias has values that are not finite; train the model again"
    assert not (tmp_path / "page.html").exists()


def test_a_page_replaces_nothing_that_is_needed(capsys, tmp_path, run):
    text = tmp_path / "text.txt"
    text.write_text("plain text\n")
    link = tmp_path / "link.html"
    link.symlink_to(text)
    kept = next(path for path in sorted(run.rglob("*")) if path.is_file())
    assert "is the text itself" in fails(capsys, "score", run, text, "--html", link)
    assert "is a file of the run" in fails(capsys, "score", run, text, "--html", kept)
    assert text.read_text() == "plain text\n"
