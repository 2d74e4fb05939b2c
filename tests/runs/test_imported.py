"""`charjax import`: a model folder of PyTorch's weights, whoever wrote them, or one line and nothing written."""

import json
import os
import random
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.command_line import fails, shows
from helpers.small_run import assert_same

from charjax import CharLSTM, UserError, Vocab, import_model, init_params, load_model, save_model
from charjax.export import write_torch
from charjax.interop import from_torch, to_torch
from charjax.runs.safetensors_file import read_any_arrays

TEXT = "a flat white"
VOCAB = Vocab.from_text(TEXT)
MODEL = CharLSTM(VOCAB.size, hidden_dim=6, hidden_layers=2)
PARAMS = init_params(jax.random.key(0), MODEL)


def weights(names=None, dtype=np.float32):
    """A state_dict, whose keys begin with other names if these are given."""
    found = {name: array.astype(dtype) for name, array in to_torch(PARAMS).items()}
    for ours, theirs in (names or {}).items():
        found = {name.replace(ours, theirs, 1) if name.startswith(ours) else name: found[name] for name in found}
    return found


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "model"


def test_what_charjax_exports_comes_back(file, out, capsys, tmp_path):
    save_model(tmp_path / "run", MODEL, PARAMS, VOCAB)
    write_torch(tmp_path / "run", file)
    assert shows(capsys, "import", file, "--out", out) == f"To generate text: charjax sample {out}\n"
    model, params, vocab = load_model(out)
    assert_same(params, PARAMS)
    assert (model.hidden_dim, model.hidden_layers, model.dtype, vocab) == (6, 2, "float32", VOCAB)
    assert len(shows(capsys, "sample", out, "--context", "a", "--length", 5)) == len("a") + 5 + len("\n")


@pytest.mark.parametrize("names", [{"lstm.": "module.rnn.", "head.": "fc."}, {"lstm.": "", "head.": "1."}])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_models_of_others_have_other_names_and_dtypes(file, out, tmp_path, names, dtype):
    given = weights(names, dtype)
    safetensors.numpy.save_file(given, file)
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    import_model(link, out, vocab=VOCAB)
    assert_same(load_model(out)[1], from_torch(weights(dtype=dtype)))


def test_an_embedding_is_multiplied_in(file, out):
    given = weights()
    table = np.random.default_rng(0).normal(size=(VOCAB.size, 3)).astype(np.float32)
    narrow = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    safetensors.numpy.save_file(given | {"lstm.weight_ih_l0": narrow, "encoder.weight": table}, file)
    import_model(file, out, vocab=VOCAB)
    np.testing.assert_allclose(load_model(out)[1]["layer_0"]["cell"]["w_ih"], table @ narrow.T, rtol=1e-5)


@pytest.mark.parametrize("name", ["text.txt", "vocab.json"])
def test_the_vocabulary_is_given_as_a_file(file, out, tmp_path, capsys, name):
    safetensors.numpy.save_file(weights(), file)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB.to_dict()))
    shows(capsys, "import", file, "--out", out, "--vocab", tmp_path / name)
    assert load_model(out)[2] == VOCAB


def test_torchs_own_files_need_torch(out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    advice = 'needs PyTorch; install it with pip install "charjax[torch]", or save the weights as .safetensors'
    with pytest.raises(UserError, match=re.escape(advice)):
        import_model(tmp_path / "weights.pt", out, vocab=VOCAB)


def test_torchs_own_files(out, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pt"
    torch.save({name: torch.from_numpy(array) for name, array in weights().items()}, path)
    import_model(path, out, vocab=VOCAB)
    assert_same(load_model(out)[1], PARAMS)
    content, again = path.read_bytes(), tmp_path / "again"
    message = "is not a state_dict saved by torch.save(model.state_dict(), FILE)"
    for damaged in (b"", content[:999], b"cos\nsystem\n(S'touch owned'\ntR."):
        path.write_bytes(damaged)
        assert fails(capsys, "import", path, "--out", again, "--vocab", "ascii") == f"{path} {message}"
    large = torch.zeros(1, dtype=torch.bfloat16).expand(10**6, 10**6)
    for hostile, message in (
        (large, "is not a state_dict of tensors"),
        ({0: large}, "is not a state_dict of tensors"),
        ({"a": [1]}, "is not a state_dict of tensors"),
        ({"lstm.weight_ih_l0": large}, "its tensors have more elements than the file has bytes"),
    ):
        torch.save(hostile, path)
        assert message in fails(capsys, "import", path, "--out", again, "--vocab", "ascii")
    assert not again.exists()


@pytest.mark.parametrize(
    ("changes", "vocab", "message"),
    [
        ({}, None, "does not list its 9 characters; pass them with --vocab"),
        ({}, Vocab.ascii(), "needs a vocabulary of 9 characters, not 128; pass the right one with --vocab"),
        ({"lstm.weight_ih_l0": None}, VOCAB, "one key that ends in weight_ih_l0, but found 0"),
        ({"other.weight_ih_l0": np.ones((24, 9))}, VOCAB, "one key that ends in weight_ih_l0, but found 2"),
        ({"lstm.weight_ih_l0_reverse": np.ones((24, 9))}, VOCAB, "belongs to a bidirectional LSTM"),
        ({"norm.weight": np.ones(6)}, VOCAB, "must not have 'norm.weight'"),
        ({"norm.weight": np.ones(6), "norm.bias": np.ones(6)}, VOCAB, "must not have 'norm.bias'"),
        ({"second.weight": np.ones((9, 6)), "second.bias": np.ones(9)}, VOCAB, "found 2: .*'second.weight'"),
        ({"head.weight": None, "head.bias": None}, VOCAB, r"must have one linear layer .*\[V, H\] and .*; found none"),
        ({"head.bias": None}, VOCAB, "found none"),
        ({"embed.weight": np.ones((9, 3))}, VOCAB, r"'embed.weight', .* must be .*, not \[9, 3\], \[24, 9\], \[9, 6\]"),
        ({"head.bias": np.full(9, np.nan)}, VOCAB, "parameter head.bias has values that are not finite"),
        ({"count": np.ones(1, np.int64)}, VOCAB, "the dtype of 'count' must be one of F64, F32, F16, BF16, not 'I64'"),
    ],
)
def test_other_weights_are_refused(file, out, changes, vocab, message):
    safetensors.numpy.save_file(
        {name: array for name, array in (weights() | changes).items() if array is not None}, file
    )
    with pytest.raises(UserError, match=message):
        import_model(file, out, vocab=vocab)
    assert not out.exists()


def test_a_message_has_the_names_of_the_file(file, out):
    arrays = {name.replace("lstm", "rnn").replace("head", "decoder"): array for name, array in weights().items()}
    for name, shape in (("rnn.weight_hh_l0", (20, 6)), ("decoder.weight", (9, 7))):
        safetensors.numpy.save_file(arrays | {name: np.ones(shape, np.float32)}, file)
        with pytest.raises(UserError, match=rf"weights.safetensors: '{name}' must have shape .*, not"):
            import_model(file, out, vocab=VOCAB)


def test_paths_that_cannot_be_read_or_written(file, out, tmp_path, capsys):
    assert fails(capsys, "import", file, "--out", out) == f"{file}: No such file or directory"
    message = "weights.bin must be a .safetensors, .pt or .pth file"
    assert fails(capsys, "import", file.with_suffix(".bin"), "--out", out).endswith(message)
    safetensors.numpy.save_file(weights(), file)
    assert "weights.safetensors is a binary file" in fails(capsys, "import", file, "--out", out, "--vocab", file)
    with pytest.raises(UserError, match="already exists and is not empty; choose another --out"):
        import_model(file, tmp_path, vocab=VOCAB)


def test_an_empty_folder_is_filled_and_not_replaced(file, out, tmp_path, monkeypatch):
    safetensors.numpy.save_file(weights(), file)
    out.mkdir()
    monkeypatch.chdir(out)
    import_model(file, ".", vocab=VOCAB)
    assert sorted(os.listdir(".")) == ["config.json", "model.safetensors", "vocab.json"]
    assert sorted(os.listdir(tmp_path)) == [out.name, file.name]


def test_damaged_files_are_refused_or_read(file):
    """Whatever a header says, the arrays that are read have no more bytes than the file."""
    safetensors.numpy.save_file(weights(), file)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for seed in range(300):
        rng, damaged = random.Random(seed), bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(end)] = rng.choice(b'0123456789"[]{},:-F')
        file.write_bytes(damaged)
        try:
            arrays, _ = read_any_arrays(file)
            assert sum(array.nbytes for array in arrays.values()) == len(content) - end
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200
