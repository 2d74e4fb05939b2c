"""`python -m benchmarks.quality`: what it counts in sampled texts."""

import jax
import pytest

from benchmarks.quality import PROMPT, judged, measure, prompts_of, repeated, words
from charjax import CharLSTM, Vocab, evaluate, init_params

TEXT = "The barista pours a flat white. "


def test_words_at_the_edges_may_be_cut_and_do_not_count():
    assert words("ista pours a Flat white, déjà vu 42 x_y pl") == [
        "pours",
        "a",
        "flat",
        "white",
        "déjà",
        "vu",
        "x",
        "y",
    ]


def test_a_text_that_repeats_itself_is_found():
    assert repeated("abcdefghijklmnopqrstuvwxyz") == 0
    assert repeated("a" * 100) == 1 - 1 / 81


def test_shares_of_known_and_copied():
    row = measure([""], [TEXT * 2], known={"the", "barista", "pours"}, training=TEXT * 3, judge=None)
    assert row["known_words"] == 5 / 10  # barista, pours, the, barista, pours
    assert row["copied"] == 1
    assert measure([""], [TEXT.upper()], set(), TEXT, None)["copied"] == 0


def test_prompts_are_followed_by_the_text():
    text = "".join(chr(ord("a") + n % 26) for n in range(3 * PROMPT))
    prompts, following = prompts_of(text, 3, 50)
    for prompt, after in zip(prompts, following, strict=True):
        assert prompt + after in text
        assert (len(prompt), len(after)) == (PROMPT, 50)


def test_the_judge_reads_the_prompt_and_judges_what_follows():
    vocab = Vocab.from_text(TEXT)
    model = CharLSTM(vocab.size, hidden_dim=8, hidden_layers=1)
    params = init_params(jax.random.key(0), model)
    prompt, text = (TEXT * 5)[:PROMPT], (TEXT * 5)[PROMPT:]
    mean = judged([prompt], [text], (model, params, vocab))
    whole = evaluate(model, params, vocab.encode(prompt + text)) * (len(prompt + text) - 1)
    of_prompt = evaluate(model, params, vocab.encode(prompt)) * (len(prompt) - 1)
    assert mean == pytest.approx((whole - of_prompt) / len(text), rel=1e-4)
