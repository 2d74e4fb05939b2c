"""`charjax export --to stablehlo`: programs that a process without charjax runs, with charjax's own results."""

import importlib.util
import os
import subprocess
import sys
import zipfile

import jax
import numpy as np
from helpers.command_line import fails

from charjax import generate, init_carry
from charjax.export import write_stablehlo
from charjax.export.stablehlo import READER
from charjax.ops.lstm import single_step

# Runs the printed lines, then the programs on other sizes.
ALONE = """
import sys
sys.modules["charjax"] = None  # importing it fails
{lines}
assert log_probs.shape == (1, 4, len(characters))
texts = np.arange(6).reshape(2, 3)
h = c = np.zeros((3, 2, 6), np.float32)
first, h, c = score(weights, texts, h, c)
second, h, c = score(weights, texts, h, c)
more = generate(weights, texts, 7, np.arange(20), 1.2, 5, 0.9, 0.05)
np.savez("found.npz", first=first, second=second, h=h, c=c, ids=ids, more=more)
assert not [name for name in sys.modules if name.startswith("charjax.")]
"""


def test_a_process_without_charjax_gets_the_same_results(saved, export, root, tmp_path):
    lines = export("stablehlo", "coffee's.zip")
    environment = {**os.environ, "PYTHONPATH": str(root / "tests" / "helpers" / "child_startup")}
    subprocess.run([sys.executable, "-c", ALONE.format(lines=lines)], check=True, env=environment, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")

    model, params = saved.model, saved.params
    context = saved.vocab.encode("The ")[None]
    fast = model.clone(implementation=None)  # compiles sooner
    own = generate(fast, params, context, key=jax.random.key(0), length=200, temperature=0.8)
    np.testing.assert_array_equal(found["ids"], own)
    texts = np.arange(6).reshape(2, 3)
    filters = {"temperature": 1.2, "top_k": 5, "top_p": 0.9, "min_p": 0.05}
    own = generate(fast, params, texts, key=jax.random.key(7), length=20, **filters)
    np.testing.assert_array_equal(found["more"], own)
    logits, carry = model.apply({"params": params}, np.tile(texts, 2), init_carry(model, 2))
    log_probs = np.concatenate([found["first"], found["second"]], axis=1)
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits), atol=1e-5)
    np.testing.assert_allclose(found["h"], [layer.h for layer in carry], atol=1e-5)
    np.testing.assert_allclose(found["c"], [layer.c for layer in carry], atol=1e-5)
    assert READER.replace("FILE", "shakespeare.zip") in (root / "docs" / "sharing.md").read_text(encoding="utf-8")


def test_the_programs_are_portable_wherever_they_are_written(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(single_step, "target_platform", lambda: "tpu")
    write_stablehlo(saved.folder, tmp_path / "new" / "model.zip")
    with zipfile.ZipFile(tmp_path / "new" / "model.zip") as file:
        content = {name: file.read(name) for name in file.namelist()}
    for name in ("score.bin", "generate.bin"):
        program = jax.export.deserialize(bytearray(content[name]))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert "custom_call" not in program.mlir_module().replace("custom_call @shape_assertion", "")
        assert os.sep.encode() + b"charjax" not in content[name]  # no paths of this machine


def test_without_flatbuffers_the_message_says_what_to_install(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = fails(capsys, "export", saved.folder, "--to", "stablehlo", "--out", tmp_path / "model.zip")
    assert message == 'StableHLO export needs flatbuffers; install it with pip install "charjax[export]"'
