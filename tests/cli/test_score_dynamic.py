"""`charjax score --dynamic`: the results of `dynamic_score` beside those of the original weights."""

import html
import re

import numpy as np
import pytest
from helpers.command_line import fails, shows
from helpers.small_run import TEXT, save_run, small_model

from charjax import Corpus, dynamic_score, load_model, score
from charjax.analysis.scored_characters import Totals
from charjax.cli.commands import score as score_module
from charjax.cli.main import main
from charjax.data.vocab import Vocab

SPOKEN = TEXT[:600]


def save(folder, corpus):
    """Saves an untrained run."""
    return save_run(folder, corpus, small_model(corpus, hidden_dim=6))


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, trained_on):
    return save(tmp_path_factory.mktemp("dynamic") / "run", Corpus.from_file(trained_on))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(SPOKEN)
    return path


def facts(out):
    """Returns the lines above the table as a dictionary."""
    rows = (line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    return {row[0]: row[1] for row in rows}


def numbers(fact):
    """Returns the two numbers of a line, dynamic and static."""
    return [float(number) for number in re.findall(r"\d+\.\d+", fact)]


def test_both_losses_are_printed_side_by_side(run, text, trained_on, capsys):
    out = shows(capsys, "score", run, text, "--dynamic")
    model, params, vocab = load_model(run)
    ids = vocab.encode(SPOKEN)
    found = dynamic_score(model, params, ids, train_ids=Corpus.from_file(trained_on).train)
    printed = facts(out)
    assert re.fullmatch(r"\d\.\d{6} nats/char, static \d\.\d{6} nats/char", printed["loss"])
    static = score(model, params, ids[None])[0].mean(dtype=np.float64)
    assert numbers(printed["loss"]) == pytest.approx([found.loss, static], abs=2e-6)
    assert numbers(printed["perplexity"]) == pytest.approx(np.exp([found.loss, static]), abs=2e-3)
    assert numbers(printed["bits/char"]) == pytest.approx(np.array([found.loss, static]) / np.log(2), abs=1e-4)
    assert found.loss < static - 0.01
    assert printed["read"] == "in one pass, updating the weights every 20 characters"
    assert printed["gradients"] == f"measured on the training text, {trained_on}, and then on the scored text"
    # The worst place is that of the weights that learn.
    worst, as_they_were = found.nats.max() / np.log(2), found.static_nats.max() / np.log(2)
    assert re.search(rf"\s{worst:.2f}\s", out)
    assert f"{worst:.2f}" != f"{as_they_were:.2f}"


def test_learning_follows_the_options(run, text, capsys):
    still = facts(shows(capsys, "score", run, text, "--dynamic", "--dynamic-learning-rate", "0"))
    learned, static = numbers(still["loss"])
    assert learned == pytest.approx(static, abs=2e-6)
    assert facts(shows(capsys, "score", run, text))["loss"] == f"{static:.6f} nats/char"
    options = ["--dynamic-learning-rate", "0.01", "--dynamic-decay", "0.1", "--dynamic-seq-len", "7"]
    out = shows(capsys, "score", run, text, "--dynamic", *options)
    model, params, vocab = load_model(run)
    train_ids = vocab.encode(TEXT[: round(0.9 * len(TEXT))])
    expected = dynamic_score(
        model, params, vocab.encode(SPOKEN), train_ids=train_ids, learning_rate=0.01, decay=0.1, seq_len=7
    )
    assert numbers(facts(out)["loss"]) == pytest.approx([expected.loss, static], abs=2e-6)


def test_without_its_training_text_gradients_are_measured_on_the_text(text, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT)
    from_file, from_none = save(tmp_path / "a", Corpus.from_file(corpus)), save(tmp_path / "b", Corpus.from_text(TEXT))
    model, params, vocab = load_model(from_file)
    expected = dynamic_score(model, params, vocab.encode(SPOKEN))

    def source_of(run):
        found = facts(shows(capsys, "score", run, text, "--dynamic"))
        assert numbers(found["loss"])[0] == pytest.approx(expected.loss, abs=2e-6)
        return found["gradients"].removeprefix("measured on the scored text only: ")

    corpus.write_text("é" + TEXT)
    assert source_of(from_file) == f"{corpus} has changed since the run was trained on it"
    corpus.unlink()
    assert source_of(from_file) == f"{corpus}, which the run was trained on, does not exist"
    assert source_of(from_none) == "the run was not trained on a file"


def test_learning_that_does_harm_logs_a_warning(run, text, capsys):
    hint = "updating the weights on this text raised its loss; try a lower --dynamic-learning-rate"
    learned, static = numbers(
        facts(shows(capsys, "score", run, text, "--dynamic", "--dynamic-learning-rate", "9", warns=hint))["loss"]
    )
    assert learned > static
    message = fails(capsys, "score", run, text, "--dynamic", "--dynamic-learning-rate", "3e38")
    assert "diverged" in message


def test_losses_that_are_equal_but_for_rounding_log_nothing(run, text, capsys, monkeypatch):
    class Rounded(Totals):
        def add(self, found):
            super().add(found)
            self.nats *= 1 + 1e-6

    monkeypatch.setattr(score_module, "Totals", Rounded)
    capsys.readouterr()
    assert main(["score", str(run), str(text), "--dynamic", "--dynamic-learning-rate", "0"]) == 0
    assert capsys.readouterr().err == ""


def test_bytes_documents_and_the_page(text, tmp_path, capsys):
    text.write_text("Grüße aus Köln\n\n" * 40)
    run, page = save(tmp_path / "run", Corpus.from_text(TEXT, vocab=Vocab.bytes())), tmp_path / "page.html"
    printed = facts(shows(capsys, "score", run, text, "--dynamic", "--separator", "\n\n", "--html", page))
    assert printed["documents"] == "40"
    per_byte, per_char = numbers(printed["bits/byte"]), numbers(printed["bits/char"])
    # Of the 16 characters of a document, three of which take two bytes, the first does not count.
    assert per_char == pytest.approx(np.array(per_byte) * 18 / 15, abs=2e-3)
    assert numbers(printed["loss"])[0] < numbers(printed["loss"])[1]
    shown = html.unescape(re.sub("<[^>]*>", " ", page.read_text()))
    assert printed["loss"] in shown
    assert printed["gradients"] in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--dynamic", "--streams", "2"],
            "--streams must be 1 with --dynamic, which adapts to all of the preceding text",
        ),
        (["--dynamic", "--dynamic-seq-len", "0"], "--dynamic-seq-len must be a whole number from 1 to 4000, not 0"),
        (
            ["--dynamic", "--dynamic-learning-rate", "-1"],
            "--dynamic-learning-rate must be at least 0 and finite, not -1.0",
        ),
        (["--dynamic", "--dynamic-decay", "nan"], "--dynamic-decay must be at least 0 and finite, not nan"),
        (["--dynamic-decay", "0.5"], "--dynamic-learning-rate, --dynamic-decay and --dynamic-seq-len need --dynamic"),
    ],
)
def test_options_that_do_not_go_together_or_are_out_of_range(run, text, capsys, argv, message):
    assert fails(capsys, "score", run, text, *argv).startswith(message)
