"""`charjax export --to onnx`: onnxruntime computes what `model.apply` does."""

import sys

import numpy as np
import pytest
from helpers.command_line import fails

from charjax import init_carry
from charjax.export import onnx as exporter
from charjax.export.onnx import READER


def test_onnxruntime_gives_the_same_logits_and_state(saved, export, root, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    lines = export("onnx", "coffee's.onnx")
    names = {}
    exec(lines, names)
    assert names["vocab"] == saved.vocab.to_dict()
    assert len(capsys.readouterr().out) == 2  # the most likely character

    ids = np.arange(12).reshape(2, 6)
    h = c = np.zeros((3, 2, 6), np.float32)
    parts = []
    for part in (ids[:, :4], ids[:, 4:]):
        logits, h, c = names["session"].run(None, {"ids": part, "h": h, "c": c})
        parts.append(logits)
    logits, carry = saved.model.apply({"params": saved.params}, ids, init_carry(saved.model, 2))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), logits, atol=1e-5)
    np.testing.assert_allclose(h, [layer.h for layer in carry], atol=1e-5)
    np.testing.assert_allclose(c, [layer.c for layer in carry], atol=1e-5)
    assert READER.replace("FILE", "shakespeare.onnx") in (root / "docs" / "sharing.md").read_text(encoding="utf-8")


def test_a_model_that_is_too_large_is_refused(saved, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(exporter, "_LARGEST", 1000)
    message = fails(capsys, "export", saved.folder, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert message.endswith("has over 2 GB of weights, more than an ONNX file can hold; export --to torch or stablehlo")
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_message_says_what_to_install(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = fails(capsys, "export", saved.folder, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert message == 'ONNX export needs onnx; install it with pip install "charjax[export]"'
