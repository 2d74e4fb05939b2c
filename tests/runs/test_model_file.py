"""Model files: written at each new best, read without Orbax from any folder, and harmless whoever made them."""

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.small_run import SMALL, TEXT, assert_same, save_run, small_corpus, small_model

from charjax import fit, generate_text, init_params, load_model
from charjax.cli import main as cli
from charjax.errors import UserError
from charjax.ops.lstm.api import IMPLEMENTATIONS
from charjax.runs.checkpoint_header import read_header
from charjax.runs.compatibility import describe_run
from charjax.runs.layout import CHECKPOINTS, CONFIG, MODEL, VOCAB
from charjax.runs.metadata import Progress
from charjax.runs.model_file import load_params, parameter_shapes, write_info, write_parameters
from charjax.runs.safe_files import LARGEST_JSON

CORPUS = small_corpus()
MODEL_3 = small_model(CORPUS, hidden_layers=3)
LSTM = small_model(CORPUS)
INFO = describe_run(LSTM, CORPUS, SMALL)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with the three files of a model, and nothing else."""
    folder = tmp_path_factory.mktemp("original") / "model"
    save_run(folder, CORPUS, LSTM)
    shutil.rmtree(folder / CHECKPOINTS)
    return folder


@pytest.fixture
def model(original, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def parts(path):
    """Splits a model file -> (header, arrays)."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(path, header, data):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def change_json(path, *places, to):
    content = json.loads(path.read_text())
    values = content
    for place in places[:-1]:
        values = values[place]
    values[places[-1]] = to
    path.write_text(json.dumps(content))


def refused(folder, message):
    """Checks that a model is refused with one short line."""
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


# What is written


def test_the_arrays_are_those_of_init_params():
    for lstm in (LSTM, MODEL_3, small_model(CORPUS, hidden_layers=1, hidden_dim=5)):
        shapes = jax.eval_shape(lambda lstm=lstm: init_params(jax.random.key(0), lstm))
        named = {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
            for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
        }
        assert parameter_shapes(describe_run(lstm, CORPUS, SMALL)) == named


def test_safetensors_reads_what_is_written(original):
    arrays = safetensors.numpy.load_file(original / MODEL)
    params = load_model(original)[1]
    assert sorted(arrays) == sorted(parameter_shapes(INFO))
    np.testing.assert_array_equal(arrays["layer_1.cell.w_hh"], params["layer_1"]["cell"]["w_hh"])
    np.testing.assert_array_equal(arrays["head.kernel"], params["head"]["kernel"])


def test_what_safetensors_writes_is_read(original, model):
    arrays = safetensors.numpy.load_file(original / MODEL)
    safetensors.numpy.save_file(arrays, model / MODEL)  # no metadata, no digest
    assert_same(load_params(model)[0], load_params(original)[0])
    assert load_params(model)[2] == Progress(step=0)


def test_arrays_that_are_not_contiguous_are_written_right(tmp_path):
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), LSTM))
    params["head"]["kernel"] = np.asfortranarray(params["head"]["kernel"])
    write_info(tmp_path, INFO)
    write_parameters(tmp_path, params, Progress(step=1))
    assert_same(load_params(tmp_path)[0], params)


def test_a_model_of_others_needs_only_its_shape(model, capsys):
    (model / CONFIG).write_text('{"model": {"hidden_dim": 12, "hidden_layers": 2}}')
    assert load_model(model)[0].hidden_dim == 12
    assert cli.main(["info", str(model)]) == 0
    assert re.search("training +not recorded", capsys.readouterr().out)
    assert cli.main(["eval", str(model)]) == 2
    assert "was not trained on a file; pass a TEXT" in capsys.readouterr().err


def test_three_files_are_enough_for_every_command_and_no_orbax_is_imported(original, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:200])
    code = (
        "import sys; from charjax.cli import main as cli\n"
        "for name, *more in (['sample', '--length', '3'], ['info'], ['eval', sys.argv[2]], ['score', sys.argv[2]],\n"
        "                    ['neurons', sys.argv[2]]):\n"
        "    assert cli.main([name, sys.argv[1], *more]) == 0\n"
        "import charjax; charjax.load_model(sys.argv[1])\n"
        "assert not [name for name in sys.modules if name.startswith('orbax')]\n"
    )
    subprocess.run([sys.executable, "-c", code, original, text], check=True, stdout=subprocess.DEVNULL)


# A run's model


# A rate so high that the second half makes the model worse.
DIVERGING = {"epochs": 2, "learning_rate": 3.0, "schedule": "constant", "resume": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose last step is not its best."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(LSTM, CORPUS, SMALL, out=run, epochs=1)
    fit(LSTM, CORPUS, SMALL, out=run, **DIVERGING)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def resume(run):
    return fit(LSTM, CORPUS, SMALL, out=run, **DIVERGING)


def test_a_run_writes_the_best_model_so_far(trained):
    progress, saved = read_header(trained).progress, load_params(trained)[2]
    assert progress.best_step < progress.step
    assert (saved.step, saved.val_loss) == (progress.best_step, progress.best_val_loss)
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "samples.txt", "vocab.json"
    ]  # fmt: skip


def test_resuming_writes_a_model_that_is_missing(trained, run):
    (run / MODEL).unlink()
    refused(run, "has no model.safetensors, .* to write it, run charjax train with --resume and the same --out")
    resume(run)
    assert (run / MODEL).read_bytes() == (trained / MODEL).read_bytes()


def test_resuming_writes_a_damaged_model_again(trained, run):
    content = bytearray((run / MODEL).read_bytes())
    content[-1] ^= 4
    (run / MODEL).write_bytes(content)
    refused(run, "model.safetensors is damaged; to write it again, run charjax train with --resume and the same --out")
    resume(run)
    assert (run / MODEL).read_bytes() == (trained / MODEL).read_bytes()


@pytest.mark.parametrize("progress", [Progress(step=0), Progress(step=10**6)])
def test_resuming_writes_the_model_of_another_step_again(trained, run, progress):
    """As a kill leaves it between a checkpoint and its model, or as a checkpoint that was skipped since had it."""
    write_parameters(run, load_params(run)[0], progress)
    resume(run)
    assert (run / MODEL).read_bytes() == (trained / MODEL).read_bytes()


def test_a_best_checkpoint_that_is_damaged_gives_way_to_the_latest(run, caplog):
    best = read_header(run).progress.best_step
    (run / MODEL).unlink()
    shutil.rmtree(run / CHECKPOINTS / str(best) / "params")
    state = resume(run)
    assert_same(load_params(run)[0], state.params)
    assert f"the best checkpoint, {best} of {run}, cannot be read" in caplog.text


def test_a_model_of_another_machines_implementation_is_used_with_the_default(tmp_path, monkeypatch, caplog, capfd):
    with monkeypatch.context() as there:
        there.setitem(IMPLEMENTATIONS, "cudnn", IMPLEMENTATIONS["scan"])
        model = small_model(CORPUS, implementation="cudnn")
        save_run(tmp_path / "run", CORPUS, model)
    with caplog.at_level("WARNING", "charjax"):
        loaded, _, _ = load_model(tmp_path / "run")
    assert loaded == model.clone(implementation=None)
    assert "'cudnn' supports only GPUs" in caplog.text
    run, text = str(tmp_path / "run"), tmp_path / "text.txt"
    text.write_text(TEXT)
    for command in (["sample", run, "--length", "5"], ["eval", run, str(text)], ["info", run]):
        assert cli.main(command) == 0, capfd.readouterr().err


# Models from someone else


@pytest.mark.parametrize("name", [MODEL, CONFIG, VOCAB])
def test_a_missing_file_is_named(model, name):
    (model / "README.md").write_text("A model with this file is not a run that was killed.")
    (model / name).unlink()
    refused(model, f"a model: it has no {name}")


@pytest.mark.parametrize("name", [MODEL, CONFIG, VOCAB])
def test_links_are_not_followed(model, tmp_path, name):
    (model / name).rename(tmp_path / "elsewhere")
    (model / name).symlink_to(tmp_path / "elsewhere")
    refused(model, f"{name} is a symbolic link; put the file itself there")


@pytest.mark.parametrize("name", [MODEL, CONFIG, VOCAB])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_are_not_read(model, name, make):
    (model / name).unlink()
    make(model / name)
    refused(model, f"{name} is not a regular file")


@pytest.mark.parametrize("name", [CONFIG, VOCAB])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"\xff", b"1" * 5000, b" " * (LARGEST_JSON + 1), b"[]"])
def test_json_of_any_depth_and_size_is_refused(model, name, content):
    (model / name).write_bytes(content)
    refused(model, "is not valid JSON|is larger than|is not a JSON object|the vocabulary must be")


@pytest.mark.parametrize(
    ("places", "value", "message"),
    [
        (("model", "hidden_dim"), 10**7, r"the model needs about 4\.8 PB of memory"),
        pytest.param(("model", "hidden_dim"), 10**300, "hidden_dim must be at most 100000000, ", id="hidden_dim-huge"),
        (("model", "hidden_layers"), 10**9, "hidden_layers must be a whole number from 1 to 1000"),
        (("model", "hidden_dim"), 13, r"head.kernel is F32\[12, 128\], not F32\[13, 128\]"),
        (("model", "hidden_layers"), 3, r"layer_2.cell.*missing"),
        (("model", "hidden_layers"), 1, r"layer_1.cell.*not missing"),
        (("model", "dtype"), "float8", "dtype must be"),
        (("model", "dropout"), float("nan"), "dropout must be"),
        (("model",), None, "ModelConfig must be an object"),
        (("charjax_version",), 1, "charjax_version must be a string"),
        (("surprise",), 1, "RunInfo must have the fields"),
    ],
)
def test_the_configuration_is_checked(model, places, value, message):
    change_json(model / CONFIG, *places, to=value)
    refused(model, message)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (
            {"kind": "chars", "characters": "abc"},
            r"does not match its configuration: head.bias is F32\[128\], not F32\[3\]",
        ),
        ({"kind": "chars", "characters": "ba"}, "must be distinct and in code point order"),
        ({"kind": "__import__('os')", "characters": ""}, "the vocabulary must be"),
    ],
)
def test_the_vocabulary_is_checked(model, vocab, message):
    (model / VOCAB).write_text(json.dumps(vocab))
    refused(model, message)


def entry(**changes):
    return {"dtype": "F32", "shape": [12, 128], "data_offsets": [512, 6656]} | changes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.kernel", entry(shape=[10**9, 10**9]), "does not match its configuration"),
        ("head.kernel", entry(shape=[128, 12]), "does not match its configuration"),
        ("head.kernel", entry(dtype="F64"), "does not match its configuration"),
        ("head.kernel", entry(dtype={"x": "y" * 10**4}), "does not match its configuration"),
        ("head.kernel", None, "does not match its configuration"),
        ("more", entry(), "does not match its configuration: more is"),
        ("../../x", entry(), "does not match its configuration"),
        ("head.kernel", entry(data_offsets=[512, 6657]), "damaged: the offsets of head.kernel are"),
        ("head.kernel", entry(data_offsets=[-6144, 0]), "damaged: the offsets of head.kernel are"),
        ("head.kernel", entry(data_offsets=[10**12, 10**12 + 6144]), "damaged: the offsets of head.kernel are"),
        ("head.kernel", entry(data_offsets=[1, 6145]), "damaged: the offsets of head.kernel are"),
        ("head.kernel", entry(data_offsets=[0.0, 6144.0]), "damaged: the offsets of head.kernel are"),
        ("head.kernel", entry(data_offsets="ab"), "damaged: the offsets of head.kernel are"),
        ("__metadata__", {"progress": 1}, "does not consist of strings and arrays"),
        ("__metadata__", [], "does not consist of strings and arrays"),
        ("__metadata__", {"progress": "{"}, "the progress in .* is not valid JSON"),
        ("__metadata__", {"progress": '{"step": -1}'}, "Progress.step must be a number from 0"),
        ("__metadata__", {"sha256": "0" * 64}, "is damaged"),
    ],
)
def test_the_header_is_checked(model, name, value, message):
    header, data = parts(model / MODEL)
    join(model / MODEL, {**header, name: value}, data)
    refused(model, message)


@pytest.mark.parametrize("header", [b"", b"[" * 70_000, b"[]", b"\xff", b"{", b"1" * 5000])
def test_a_header_of_another_kind_is_refused(model, header):
    join(model / MODEL, header, b"")
    refused(model, "is not valid JSON|is not a model file")


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}"])
def test_the_length_of_the_header_is_bounded(model, content):
    (model / MODEL).write_bytes(content)
    refused(model, "its header would be|is not valid JSON")


@pytest.mark.parametrize("size", [0, 9, 30_000, 2**40])
def test_files_of_another_size_are_not_read(model, size):
    os.truncate(model / MODEL, size)  # a terabyte of zeros takes no room on disk
    refused(model, "is damaged|is not valid JSON")


def test_any_flipped_bit_of_an_array_is_noticed(model):
    content = (model / MODEL).read_bytes()
    _, data = parts(model / MODEL)
    for place in random.Random(0).sample(range(len(content) - len(data), len(content)), 20):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (model / MODEL).write_bytes(changed)
        refused(model, "is damaged")


def filled_model(folder, value):
    """Writes a model whose parameters are all the same, and loads it."""
    write_info(folder, INFO)
    params = jax.tree.map(lambda leaf: np.full_like(leaf, value), init_params(jax.random.key(0), LSTM))
    write_parameters(folder, params, Progress(step=1))
    return load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, capsys, value):
    filled_model(tmp_path, value)
    assert cli.main(["sample", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("charjax: error: parameter ")
    assert line.endswith(" has values that are not finite; train the model again")


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_numbers_that_overflow_give_some_text(tmp_path, weights):
    model, params, vocab = filled_model(tmp_path, 3e38)
    for temperature in (0.0, 1.0):
        (text,) = generate_text(model, params, vocab, "a", length=40, temperature=temperature, weights=weights)
        assert len(text) == 40
        assert not vocab.unknown(text)


def test_half_characters_in_a_vocabulary_are_written_as_escapes(model, capfdbinary):
    characters = "".join(map(chr, range(0xD800, 0xD800 + 128)))
    (model / VOCAB).write_text(json.dumps({"kind": "chars", "characters": characters}))
    assert cli.main(["sample", str(model), "--length", "20"]) == 0
    assert b"\\ud8" in capfdbinary.readouterr().out


def test_info_shows_names_without_obeying_them(model, capsys):
    change_json(model / CONFIG, "corpus", "name", to="\x1b]0;owned\x07\nbest  0.0001 nats/char")
    assert cli.main(["info", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert not any(line.startswith("best  0.0001") for line in shown.splitlines())


def test_names_from_a_model_cannot_command_the_terminal(model, capsys):
    change_json(model / CONFIG, "corpus", "path", to="/tmp/\x1b]0;owned\x07.txt")
    assert cli.main(["eval", str(model)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def mutate(content, rng):
    """Returns bytes with up to three flips, cuts, insertions and longer numbers."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content))
        action = rng.choice(["flip", "cut", "digits", "insert"])
        if action == "flip":
            content[place] ^= rng.randint(1, 255)
        elif action == "cut":
            del content[max(1, place) :]
        elif action == "insert":
            content[place:place] = rng.randbytes(rng.randint(1, 8))
        else:
            digits = [at for at, byte in enumerate(content) if 48 <= byte < 58] or [place]
            at = rng.choice(digits)
            content[at : at + 1] = b"9" * rng.randint(1, 12)
    return bytes(content)


def fuzz(original, work, seeds):
    """Loads mutated models; run in a separate process, which a crash would end."""
    load_params(original)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Far less than a hostile header can ask for, and room for the stacks of threads.
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**32, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for seed in range(seeds):
        rng = random.Random(seed)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(original, work)
        header, data = parts(work / MODEL)
        name = rng.choice(["header", "header", MODEL, CONFIG, VOCAB])
        print(seed, name, flush=True)
        if name == "header":
            join(work / MODEL, mutate(json.dumps(header).encode(), rng), data)
        else:
            (work / name).write_bytes(mutate((work / name).read_bytes(), rng))
        try:
            load_model(work)
            loaded += 1
        except (UserError, OSError) as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 2000  # noqa: PT017
    print(loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory is mapped")
@pytest.mark.parametrize("seeds", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_models_are_loaded_or_refused_in_little_memory(original, tmp_path, seeds):
    code = "import pathlib, sys, test_model_file as m; m.fuzz(*map(pathlib.Path, sys.argv[1:3]), int(sys.argv[3]))"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[1])))}
    done = subprocess.run(
        [sys.executable, "-c", code, original, tmp_path / "work", str(seeds)],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-2000:])
    loaded, grown_kb = map(int, done.stdout.splitlines()[-1].split())
    assert 0 < loaded < seeds
    assert grown_kb < 50_000
