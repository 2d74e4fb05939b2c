"""`charjax export --to torch`: a file that the lines of torch which the command prints read."""

import json
import sys

import numpy as np
import pytest
import safetensors

from charjax import init_carry
from charjax.errors import UserError
from charjax.export import write_torch
from charjax.export.torch import READER
from charjax.runs.layout import MODEL


def test_the_printed_lines_give_the_same_logits(saved, export, root):
    torch = pytest.importorskip("torch")
    lines = export("torch", "coffee's.safetensors")
    names = {}
    exec(lines, names)
    ids = np.arange(8).reshape(2, 4)
    with torch.no_grad():
        first, state = names["model"](torch.from_numpy(ids[:, :1]))
        rest, (h, c) = names["model"](torch.from_numpy(ids[:, 1:]), state)
    logits, carry = saved.model.apply({"params": saved.params}, ids, init_carry(saved.model, 2))
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), logits, atol=1e-5)
    np.testing.assert_allclose(h, [layer.h for layer in carry], atol=1e-5)
    np.testing.assert_allclose(c, [layer.c for layer in carry], atol=1e-5)
    assert READER.replace("FILE", "shakespeare.safetensors") in (root / "docs" / "sharing.md").read_text(
        encoding="utf-8"
    )


def test_the_vocabulary_is_in_the_metadata_and_no_torch_is_needed(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    write_torch(saved.folder, tmp_path / "new" / "model.safetensors")
    with safetensors.safe_open(tmp_path / "new" / "model.safetensors", "np") as file:
        assert json.loads(file.metadata()["vocab"]) == saved.vocab.to_dict()


def test_a_file_of_the_run_is_not_replaced_but_another_is(saved, tmp_path):
    before = (saved.folder / MODEL).read_bytes()
    with pytest.raises(UserError, match=r"model.safetensors is a file of the run, .*; choose another file"):
        write_torch(saved.folder, saved.folder / MODEL)
    assert (saved.folder / MODEL).read_bytes() == before
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        write_torch(saved.folder, tmp_path)
    (tmp_path / "model.safetensors").write_text("an earlier export")
    write_torch(saved.folder, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size > 1000
