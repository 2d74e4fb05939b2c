"""`charjax sample`: prompts from files, stop strings, turns, beams, endless texts, and one line for every mistake."""

import functools
import io
import os
import signal
import subprocess
import sys

import jax
import pytest
from helpers.command_line import fails
from helpers.small_run import save_run, small_corpus, small_model

from charjax import generate_text, load_model
from charjax.cli.commands import sample as sample_module
from charjax.cli.main import main
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab
from charjax.generation import decoder
from charjax.generation.beam_search import beam_search_text
from charjax.generation.session import Session
from charjax.ops.lstm.native.generation import library_for_generation


def save(folder, vocab):
    """Saves an untrained run with larger weights, so that it prefers some characters."""
    corpus = small_corpus(vocab=vocab)
    larger = functools.partial(jax.tree.map, lambda leaf: 4 * leaf)
    return save_run(folder, corpus, small_model(corpus, hidden_dim=8, dropout=0.0), larger)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sample") / "run", "ascii")


@pytest.fixture(scope="module")
def loaded(run):
    """The model, its parameters and vocabulary."""
    return load_model(run)


@pytest.fixture
def context_file(tmp_path):
    path = tmp_path / "context.txt"
    path.write_text("It was a dark and stormy night.\n" * 700)
    return path


def samples(capfdbinary, *argv):
    """Runs the command -> its output, to the byte."""
    capfdbinary.readouterr()
    code = main(["sample", *map(str, argv)])
    out, err = capfdbinary.readouterr()
    assert code == 0, err
    assert err == b""
    return out.decode()


def texts(out):
    """Returns the texts below their headings."""
    parts = out.split("\n--- ")
    return [part.partition(" ---\n")[2] for part in [parts[0].removeprefix("--- "), *parts[1:]]]


def started(*argv, **options):
    command = [sys.executable, "-m", "charjax", "sample", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# ---- a prompt from the command line or a file


def test_the_prompt_is_printed_before_its_continuation(run, loaded, capfdbinary):
    (expected,) = generate_text(*loaded, "The ", seed=3, length=70)
    assert samples(capfdbinary, run, "--context", "The ", "--length", 70, "--seed", 3) == f"The {expected}\n"


def test_a_prompt_file_is_read_whole_and_not_printed(run, loaded, context_file, capfdbinary):
    text = context_file.read_text()
    (expected,) = generate_text(*loaded, text, length=70, seed=3)
    out = samples(capfdbinary, run, "--context-file", context_file, "--length", 70, "--seed", 3)
    assert out == expected + "\n"
    # With only the end of the file, the continuation would differ.
    assert generate_text(*loaded, text[-3:], length=70, seed=3) != [expected]


def test_files_that_are_not_prompts(run, context_file, tmp_path, capsys):
    wrong = tmp_path / "wrong.txt"
    assert "wrong.txt does not exist" in fails(capsys, "sample", run, "--context-file", wrong)
    wrong.write_text("")
    assert "wrong.txt is empty" in fails(capsys, "sample", run, "--context-file", wrong)
    wrong.write_text("so\ncafé")
    message = fails(capsys, "sample", run, "--context-file", wrong)
    assert "line 2, column 4: 'é' (U+00E9) is not in the ascii vocabulary; replace it in the text" in message
    wrong.write_bytes(b"ab\xff")
    message = fails(capsys, "sample", run, "--context-file", wrong)
    assert message.endswith("byte 0xff at offset 2; convert the file, or use --on-unknown skip or replace")
    (tmp_path / "folder").mkdir()
    assert "contains no files" in fails(capsys, "sample", run, "--context-file", tmp_path / "folder")
    assert "--context-file needs a non-empty value" in fails(capsys, "sample", run, "--context-file", "")


# ---- a stop string


def test_a_text_ends_right_after_the_stop_even_across_pieces(run, loaded, capfdbinary):
    options = [run, "--context", "a", "--length", 400, "--seed", 5]
    (whole,) = generate_text(*loaded, "a", length=400, seed=5)
    assert samples(capfdbinary, *options) == f"a{whole}\n"
    for place in (3, 14, 46, 300):  # the first piece ends after 16 characters
        stop = whole[place : place + 4]
        until = whole[: whole.index(stop) + 4]
        assert samples(capfdbinary, *options, f"--stop={stop}") == f"a{until}\n"
    assert samples(capfdbinary, *options[:-4], "--seed", 5, "--length", 0, f"--stop={stop}") == f"a{until}\n"
    several = texts(samples(capfdbinary, *options, "--num-samples", 2, f"--stop={stop}"))
    assert several[0] == f"a{until}"
    assert samples(capfdbinary, *options, "--stop", "a stop that never comes") == f"a{whole}\n"


@pytest.mark.parametrize("options", [[], ["--num-samples", "2"], ["--interactive"], ["--beam-width", "2"]])
def test_a_stop_that_cannot_occur(run, capsys, options):
    assert "the stop string cannot be used: it is empty" in fails(capsys, "sample", run, "--stop", "", *options)
    assert "vocabulary does not contain 'é' (U+00E9)" in fails(capsys, "sample", run, "--stop", "né", *options)


# ---- turns


def take_turns(monkeypatch, typed, *argv):
    """Runs the command with input from a pipe, in a locale that knows only ASCII -> its exit code."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="ascii", newline="\n"))
    return main(["sample", "--interactive", *map(str, argv)])


def in_turns(loaded, config, turns, stop=None):
    """Yields what a session writes after each turn."""
    session = Session(*loaded, config, stop=stop)
    for turn in turns:
        session.read(loaded[2].encode(turn))
        yield "".join(session.write(config.length or None)) + "\n"


def test_turns_continue_one_text(run, loaded, monkeypatch, capsys):
    expected = list(in_turns(loaded, SampleConfig(length=21, seed=2), ["Once upon", " a time", "\n"]))
    assert take_turns(monkeypatch, b"Once upon\n a time\n\n", run, "--length", 21, "--seed", 2) == 0
    assert capsys.readouterr() == ("".join(expected), "")
    # Without the first turn, the second is continued differently.
    assert list(in_turns(loaded, SampleConfig(length=21, seed=2), [" a time"])) != expected[1:2]


def test_turns_end_with_the_stop_and_begin_after_the_context(run, loaded, context_file, monkeypatch, capsys):
    config = SampleConfig(length=0, seed=2)
    expected = list(in_turns(loaded, config, [context_file.read_text() + "so", "on"], "e"))
    assert take_turns(
        monkeypatch, b"so\non", run, "--length", 0, "--seed", 2, "--stop", "e", "--context-file", context_file
    ) == 0  # fmt: skip
    assert capsys.readouterr().out == "".join(expected)
    assert all(turn.index("e") == len(turn) - 2 for turn in expected)


def test_a_bad_line_is_reported_and_the_conversation_continues(run, loaded, monkeypatch, capsys):
    expected = list(in_turns(loaded, SampleConfig(length=9), ["one", "two"]))
    assert take_turns(monkeypatch, b"one\ncaf\xc3\xa9\n\xff\ntwo\n", run, "--length", 9) == 0
    out, err = capsys.readouterr()
    assert out == "".join(expected)
    first, second = err.splitlines()
    assert first.startswith("charjax: ")
    assert "'é' (U+00E9)" in first
    assert second.endswith("not in the ascii vocabulary: byte 0xff; remove them, or use --on-unknown skip or replace")


def test_lines_may_end_as_on_windows(run, loaded, monkeypatch, capsys):
    expected = list(in_turns(loaded, SampleConfig(length=9), ["one", "two"]))
    assert take_turns(monkeypatch, b"one\r\ntwo\r\n", run, "--length", 9) == 0
    assert capsys.readouterr() == ("".join(expected), "")


def test_input_of_which_no_line_can_be_used_is_an_error(run, monkeypatch, capsys):
    assert take_turns(monkeypatch, b"\xff\ncaf\xc3\xa9\n", run) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[2:] == [
        "charjax: error: no line of the input could be continued; correct the characters named above"
    ]


def test_no_input_writes_nothing(run, monkeypatch, capsys):
    assert take_turns(monkeypatch, b"", run) == 0
    assert capsys.readouterr() == ("", "")


def test_any_bytes_may_be_typed_for_a_model_of_bytes(tmp_path, monkeypatch, capfdbinary):
    run = save(tmp_path / "run", "bytes")
    model, params, vocab = load_model(run)
    assert vocab == Vocab.bytes()
    session = Session(model, params, vocab, SampleConfig(length=30, seed=1))
    session.read(vocab.encode("é\udcff"))
    assert take_turns(monkeypatch, "é".encode() + b"\xff\n", run, "--length", 30, "--seed", 1) == 0
    assert capfdbinary.readouterr().out.decode() == "".join(session.write(30)) + "\n"


# ---- an endless text


def test_without_a_length_it_continues_until_interrupted_and_loses_nothing(run, loaded):
    with started(run, "--length", 0, "--seed", 4) as process:
        first = process.stdout.read(3000)
        process.send_signal(signal.SIGINT)
        # Not `communicate`, which would miss what `stdout` has read ahead.
        rest, err = process.stdout.read(), process.stderr.read()
    assert (process.returncode, err) == (130, b"charjax: interrupted\n")
    out = (first + rest).decode()
    assert out.endswith("\n")
    (expected,) = generate_text(*loaded, seed=4, length=len(out) - 1)
    assert out == expected + "\n"


def test_without_a_length_it_continues_until_nobody_reads(run):
    with started(run, "--length", 0) as process:
        assert len(process.stdout.read(3000)) == 3000
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


# ---- beams


def test_a_single_beam_takes_the_most_likely_character_each_time(run, capfdbinary):
    options = [run, "--context", "The ", "--length", 40]
    greedy = samples(capfdbinary, *options, "--temperature", 0)
    assert samples(capfdbinary, *options, "--beam-width", 1) == greedy
    assert greedy.startswith("The ")


def test_the_best_of_several_beams(run, loaded, capfdbinary):
    options = [run, "--context", "The ", "--length", 12, "--beam-width", 4]
    expected = beam_search_text(*loaded, "The ", length=12, beam_width=4)
    assert samples(capfdbinary, *options) == f"The {expected[0]}\n"
    out = samples(capfdbinary, *options, "--num-samples", 2)
    first, second = expected[:2]
    assert out == f"--- 1 of 2 ---\nThe {first}\n--- 2 of 2 ---\nThe {second}\n"
    assert first != second


def test_beams_end_with_the_stop_and_heed_the_length_penalty(run, loaded, capfdbinary):
    for penalty in (-5.0, 5.0):
        found = beam_search_text(*loaded, "a", length=12, beam_width=3, end="e", length_penalty=penalty)
        options = [run, "--context", "a", "--length", 12, "--beam-width", 3, "--stop", "e"]
        assert samples(capfdbinary, *options, f"--length-penalty={penalty}") == f"a{found[0]}\n"
        assert "e" not in found[0][:-1]


@pytest.mark.parametrize("width", ["0", "-1"])
def test_beam_widths_out_of_range(run, capsys, width):
    message = f"--beam-width must be a whole number of at least 1, not {width}"
    assert message in fails(capsys, "sample", run, "--beam-width", width)


@pytest.mark.parametrize("penalty", ["11", "-10.5", "nan", "inf"])
def test_length_penalties_out_of_range(run, capsys, penalty):
    message = f"--length-penalty must be a number from -10 to 10, not {float(penalty)}"
    assert message in fails(capsys, "sample", run, "--beam-width", 2, "--length-penalty", penalty)


def test_prompts_and_stops_that_a_search_cannot_use(run, capsys):
    message = fails(capsys, "sample", run, "--beam-width", 2, "--stop", "ab")
    assert message == "--stop must be a single character with --beam-width, not 'ab'"
    assert "'é' (U+00E9)" in fails(capsys, "sample", run, "--beam-width", 2, "--context", "é")


# ---- sampling


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "temperature": 1.4},
        {"weights": "bfloat16"},
        {"weights": "float32", "top_p": 1.0, "min_p": 0.0},
    ],
    ids=str,
)
def test_settings_reach_the_sampler(run, loaded, capfdbinary, settings):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    (expected,) = generate_text(*loaded, "a", length=60, seed=7, **settings)
    assert samples(capfdbinary, run, "--context", "a", "--length", 60, "--seed", 7, *options) == f"a{expected}\n"


def test_weights_of_eight_bits(run, loaded, capfdbinary):
    if library_for_generation() is None:
        pytest.skip("no kernel on this machine")
    (expected,) = generate_text(*loaded, "a", length=60, weights="int8")
    assert samples(capfdbinary, run, "--context", "a", "--length", 60, "--weights", "int8") == f"a{expected}\n"


def test_weights_of_eight_bits_without_the_kernel(run, monkeypatch, capsys):
    monkeypatch.setattr(decoder, "library_for_generation", lambda: None)
    jax.clear_caches()  # weights may have been packed with the kernel before
    try:
        assert "int8" in fails(capsys, "sample", run, "--weights", "int8")
    finally:
        jax.clear_caches()


@pytest.mark.parametrize("option", ["--top-k=1", "--top-p=0.000001", "--min-p=1"])
def test_settings_that_leave_only_the_most_likely(run, capfdbinary, option):
    options = [run, "--context", "a", "--length", 60]
    greedy = samples(capfdbinary, *options, "--temperature", 0)
    assert samples(capfdbinary, *options, option) == greedy
    assert samples(capfdbinary, *options) != greedy


def test_a_seed_samples_the_same_texts_again(run, capfdbinary):
    options = [run, "--num-samples", 3, "--length", 50]
    first = samples(capfdbinary, *options, "--seed", 6)
    assert samples(capfdbinary, *options, "--seed", 6) == first
    assert samples(capfdbinary, *options, "--seed", 8) != first
    assert len(set(texts(first))) == 3
    # The first is the one sampled by itself.
    assert texts(first)[0] + "\n" == samples(capfdbinary, run, "--length", 50, "--seed", 6)


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--top-k=-3", "--top-k must be a whole number of at least 1, not -3"),
        ("--top-k=1.5", "--top-k"),
        ("--top-p=nan", "--top-p must be above 0 and at most 1, not nan"),
        ("--top-p=-0.1", "--top-p must be above 0 and at most 1"),
        ("--min-p=-0.1", "--min-p must be between 0 and 1, not -0.1"),
        ("--min-p=1.01", "--min-p must be between 0 and 1, not 1.01"),
        ("--min-p=nan", "--min-p must be between 0 and 1"),
        ("--temperature=inf", "--temperature must be at least 0 and finite"),
        ("--length=10000000000", "--length must be"),
        ("--seed=4294967296", "--seed must be"),
        ("--weights=int4", "int4"),
    ],
)
def test_settings_out_of_range(run, capsys, option, rule):
    assert rule in fails(capsys, "sample", run, option)


# ---- options that do not go together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--context a --context-file b", "--context and --context-file cannot be combined"),
        ("--length-penalty 1", "--length-penalty needs --beam-width"),
        ("--interactive --num-samples 2", "--interactive generates a single continuation; omit --num-samples"),
        ("--interactive --beam-width 2", "--interactive generates a single continuation; omit --beam-width"),
        ("--length 0 --num-samples 2", "pass a --length with --num-samples"),
        ("--length 0 --beam-width 2", "pass a --length with --beam-width"),
        ("--num-samples 2 --context-file b", "omit --num-samples, or use --context"),
        ("--beam-width 2 --context-file b", "omit --beam-width, or use --context"),
        ("--interactive --length 0", "--interactive needs a --length or a --stop to end a turn"),
        ("--beam-width 2 --num-samples 3", "a --beam-width of 2 gives at most 2 texts; raise it to 3, or lower"),
        ("--beam-width 2 --temperature 0.5", "--temperature is for sampling; omit it or --beam-width"),
        ("--beam-width 2 --top-k 3", "--top-k is for sampling"),
        ("--beam-width 2 --top-p 0.5", "--top-p is for sampling"),
        ("--beam-width 2 --min-p 0.5", "--min-p is for sampling"),
        ("--beam-width 2 --weights int8", "--weights is for sampling"),
    ],
)
def test_options_that_do_not_go_together(capsys, options, message):
    """This is reported before the run is read."""
    assert message in fails(capsys, "sample", "nowhere", *options.split())


def test_a_config_file_gives_options(run, tmp_path, capfdbinary):
    config = tmp_path / "sample.toml"
    config.write_text(
        'context = "so\\n"\nstop = "."\ninteractive = false\n'
        "[sampling]\nlength = 40\ntop-p = 0.9\nmin_p = 0\nseed = 9\n"
    )
    options = ["--stop=.", "--top-p=0.9", "--length=40"]
    assert samples(capfdbinary, run, "--config", config) == samples(
        capfdbinary, run, "--context", "so\n", "--seed", 9, *options
    )
    assert samples(capfdbinary, run, "--config", config, "--seed", 1) == samples(
        capfdbinary, run, "--context", "so\n", "--seed", 1, *options
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("beam_width = 0", "--beam-width must be a whole number of at least 1, not 0"),
        ("beam_width = '2'", "beam_width cannot be '2'"),
        ("interactive = 'yes'", "interactive cannot be 'yes'"),
        ("interactive = true\nlength = 0", "--interactive needs a --length or a --stop"),
        ("stop = 3", "stop cannot be 3"),
        ("weights = 'int4'", "int4"),
        ("top_q = 1", "unknown option 'top_q', did you mean top_"),
    ],
)
def test_config_files_that_cannot_be_used(run, tmp_path, capsys, content, message):
    (tmp_path / "sample.toml").write_text(content)
    assert message in fails(capsys, "sample", run, "--config", tmp_path / "sample.toml")


# ---- output


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_gets_harmless_text_and_a_file_the_sampled_text(run, loaded, monkeypatch, capfdbinary):
    options = [run, "--length", 300, "--temperature", 20, "--seed", 3]
    (sampled,) = generate_text(*loaded, temperature=20, length=300, seed=3)
    assert {"\x1b", "\x07"} & set(sampled)  # it has characters that control a terminal
    assert samples(capfdbinary, *options) == sampled + "\n"
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["sample", *map(str, options)]) == 0
    shown = terminal.getvalue()
    assert all(character in {"\n", "\t"} or character.isprintable() for character in shown)
    assert shown != sampled + "\n"
    assert len(shown) == len(sampled.replace("\r\n", "\n")) + 1


def test_a_pipe_gets_what_a_file_gets(run, capfdbinary, monkeypatch):
    """Whatever the encoding; under pytest standard output is a file."""
    options = [run, "--length", 40, "--context", "a"]
    expected = samples(capfdbinary, *options)
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader, open(write_end, "w", encoding="ascii") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["sample", *map(str, options)]) == 0
        monkeypatch.undo()
        pipe.close()
        assert reader.read().decode() == expected


def test_a_line_break_is_not_cut_in_two(monkeypatch):
    written = []
    monkeypatch.setattr(sample_module, "write", written.append)
    sample_module._write_all(iter(["a\r", "\nb\r", "\r", "c\r"]))
    assert "".join(written) == "a\r\nb\r\rc\r\n"
    assert not any(text.startswith("\n") for text in written[:-1])
