"""How good sampled text is, beside the held-out loss: words, repetition, and the loss of another model on it.

    python -m benchmarks.quality TEXT --runs runs/tiny runs/small --judge runs/large

Each run writes texts at temperature 0.8, each from a line of the validation text as prompt. Of what it wrote, counted
without the prompt:

- known words: the share of words that occur in the training text.
- distinct words: different words per 1000 words.
- repeated: the share of runs of 20 characters that occurred earlier in the same sample.
- copied: the share of runs of 20 characters that stand in the training text. A model that has learned the text by
  heart copies much more of it than the validation text does.
- judge: nats per character of another, larger model, whose own samples should not be judged by it.

The first line of the table is the validation text itself, cut into texts of the same length.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.options import add_results, make_parser
from benchmarks.common.report import markdown
from benchmarks.common.results import ResultsFile
from charjax import CharLSTM, Corpus, Vocab, generate_text, load_model, score

TEMPERATURE = 0.8
PROMPT = 100
RUN = 20  # characters
WORD = re.compile(r"[^\W\d_]+")
Judge = tuple[CharLSTM, Any, Vocab]


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case; the first and the last may be cut, and are left out."""
    return [word.lower() for word in WORD.findall(text)[1:-1]]


def runs_of(text: str) -> list[str]:
    """Returns all runs of RUN characters."""
    return [text[at : at + RUN] for at in range(len(text) - RUN + 1)]


def repeated(text: str) -> float:
    """Returns the share of runs that occurred earlier in the text."""
    found = runs_of(text)
    return 1 - len(set(found)) / max(1, len(found))


def measure(
    prompts: list[str], texts: list[str], known: set[str], training: str, judge: Judge | None
) -> dict[str, Any]:
    """Returns what the module's docstring lists, for texts that continue the prompts."""
    written = [word for text in texts for word in words(text)]
    stretches = [stretch for text in texts for stretch in runs_of(text)]
    return {
        "known_words": float(np.mean([word in known for word in written])),
        "distinct_words_per_1000": 1000 * len(set(written[:1000])) / len(written[:1000]),
        "repeated": float(np.mean([repeated(text) for text in texts])),
        "copied": float(np.mean([stretch in training for stretch in stretches[:: max(1, len(stretches) // 2000)]])),
        "judge_nats": None if judge is None else judged(prompts, texts, judge),
    }


def judged(prompts: list[str], texts: list[str], judge: Judge) -> float:
    """Returns the judge's loss on the texts, each read after its prompt."""
    model, params, vocab = judge
    ids = np.stack([vocab.encode(prompt + text) for prompt, text in zip(prompts, texts, strict=True)])
    return float(np.mean(np.asarray(score(model, params, ids))[:, PROMPT - 1 :]))


def prompts_of(text: str, number: int, length: int) -> tuple[list[str], list[str]]:
    """Cuts prompts from a text, evenly spread, and what follows each."""
    starts = np.linspace(0, len(text) - PROMPT - length, number).astype(int).tolist()
    return [text[at : at + PROMPT] for at in starts], [text[at + PROMPT : at + PROMPT + length] for at in starts]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns a line for each run."""
    head = ["text", "known words", "distinct words", "repeated", "copied", "judge"]
    lines = []
    for name, row in rows.items():
        judge = row["judge_nats"]
        shares = [f"{row[share]:.1%}" for share in ("known_words", "repeated", "copied")]
        distinct = f"{row['distinct_words_per_1000']:.0f}"
        lines.append([name, shares[0], distinct, *shares[1:], "" if judge is None else f"{judge:.3f}"])
    return markdown(head, lines)


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures the validation text and samples of each run."""
    corpus = Corpus.from_file(arguments.text)
    training, validation = (corpus.vocab.decode(np.asarray(part)) for part in (corpus.train, corpus.validation))
    known = set(words(training))
    judge = None if arguments.judge is None else load_model(arguments.judge)
    prompts, following = prompts_of(validation, arguments.samples, arguments.length)
    rows = {"validation text": measure(prompts, following, known, training, judge)}
    for run in arguments.runs:
        model, params, vocab = load_model(run)
        texts = generate_text(model, params, vocab, prompts, length=arguments.length, temperature=TEMPERATURE, seed=0)
        rows[run.name] = measure(prompts, texts, known, training, judge)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_parser("quality", __doc__)
    add_results(parser)
    parser.add_argument("text", type=Path, help="the text that the runs were trained on")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--judge", type=Path, help="run folder of the model that judges the samples")
    parser.add_argument("--samples", type=int, default=64, help="texts per run (default 64)")
    parser.add_argument("--length", type=int, default=1000, help="characters per text (default 1000)")
    arguments = parser.parse_args(argv)
    rows = compare(arguments)
    print(table(rows))
    settings = {"temperature": TEMPERATURE, "samples": arguments.samples, "length": arguments.length}
    print("written:", ResultsFile(arguments.results, "quality", **settings, rows=rows).save())


if __name__ == "__main__":
    main()
