"""Creates a model folder from weights trained in PyTorch."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charjax.data.vocab import Vocab
from charjax.errors import UserError, check_type, checked_path
from charjax.interop.torch import from_torch, standard_names, with_standard_names
from charjax.model import CharLSTM
from charjax.runs.model_file import save_model
from charjax.runs.safe_files import open_file, parse_json
from charjax.runs.safetensors_file import read_any_arrays


def import_model(file: str | Path, out: str | Path, *, vocab: Vocab | None = None) -> None:
    """Creates a model folder from a PyTorch model with an `nn.LSTM`, an `nn.Linear` and optionally an `nn.Embedding`.

    Args:
        file: a state_dict, either as .safetensors (of any float dtype) or as saved by torch.save (.pt or .pth, which
            requires torch). Untrusted files are safe, since nothing in them is executed.
        out: the folder to create.
        vocab: the characters, in the order of the model's ids; by default those listed in the file's metadata, where
            `charjax.export.write_torch` puts them.

    Raises:
        UserError: the file is not such a state_dict or does not list its characters, the vocabulary has a different
            size, torch is not installed, or the folder is not empty or cannot be written.
        OSError: the file cannot be read.

    Examples:
        >>> import tempfile
        >>> import numpy as np, safetensors.numpy
        >>> from charjax import Vocab, import_model, load_model
        >>> shapes = {"weight_ih": (32, 5), "weight_hh": (32, 8), "bias_ih": (32,), "bias_hh": (32,)}
        >>> weights = {f"rnn.{name}_l0": np.ones(shape) for name, shape in shapes.items()}
        >>> weights |= {"out.weight": np.ones((5, 8)), "out.bias": np.ones(5)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     safetensors.numpy.save_file(weights, f"{folder}/weights.safetensors")
        ...     import_model(f"{folder}/weights.safetensors", f"{folder}/model", vocab=Vocab.from_text("tea to"))
        ...     load_model(f"{folder}/model")[0].hidden_dim
        8
    """
    path = checked_path("file", file)
    checked_path("out", out)
    if vocab is not None:
        check_type("vocab", vocab, Vocab, "e.g. Vocab.ascii()")
    state_dict, metadata = _read(path)
    names: dict[str, str] = {}
    try:
        names = standard_names(state_dict)
        params = from_torch(with_standard_names(state_dict, names))
        if vocab is None and "vocab" in metadata:
            vocab = Vocab.from_dict(parse_json(metadata["vocab"], "the vocabulary"))
    except UserError as error:
        message = str(error)
        for own, standard in names.items():
            message = message.replace(repr(standard), repr(own))
        raise UserError(f"{path}: {message}") from error
    hidden_dim, vocab_size = params["head"]["kernel"].shape
    if vocab is None:
        raise UserError(f"{path} does not list its {vocab_size} characters; pass them with --vocab")
    if vocab.size != vocab_size:
        raise UserError(
            f"{path} needs a vocabulary of {vocab_size} characters, not {vocab.size}; pass the right one with --vocab"
        )
    model = CharLSTM(vocab_size, hidden_dim, len(params) - 1, dtype="float32")
    save_model(out, model, params, vocab)


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Reads a state_dict and the file's metadata."""
    file = Path(os.path.realpath(path))  # the Hugging Face cache consists of links
    match path.suffix:
        case ".safetensors":
            return read_any_arrays(file)
        case ".pt" | ".pth":
            return _read_with_torch(file), {}
    raise UserError(f"{path} must be a .safetensors, .pt or .pth file")


def _read_with_torch(path: Path) -> Mapping[str, Any]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        advice = 'install it with pip install "charjax[torch]", or save the weights as .safetensors'
        raise UserError(f"reading {path} needs PyTorch; {advice}") from error
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise almost anything
            raise UserError(f"{path} is not a state_dict saved by torch.save(model.state_dict(), FILE)") from error
    arrays = list(found.values()) if isinstance(found, Mapping) else []
    is_state_dict = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    if not is_state_dict or not all(isinstance(one, torch.Tensor) and one.layout == torch.strided for one in arrays):
        raise UserError(f"{path} is not a state_dict of tensors; save only model.state_dict()")
    # A tensor's strides may repeat a few stored values any number of times.
    if sum(array.numel() for array in arrays) > size:
        raise UserError(f"{path} is damaged: its tensors have more elements than the file has bytes")
    return found
