"""Makes a model folder of weights that PyTorch trained."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charjax.data.vocab import Vocab
from charjax.errors import UserError, check_type, checked_path
from charjax.interop.torch import from_torch, with_standard_names
from charjax.model import CharLSTM
from charjax.runs.model_file import save_model
from charjax.runs.safe_files import open_file, parse_json
from charjax.runs.safetensors_file import read_any_arrays


def import_model(file: str | Path, out: str | Path, *, vocab: Vocab | None = None) -> None:
    """Makes a model folder of the weights of a PyTorch model: an `nn.LSTM`, an `nn.Linear`, perhaps an `nn.Embedding`.

    Args:
        file: a state_dict, as .safetensors (of any float dtype) or as torch.save writes it, .pt or .pth, which takes
            torch. It need not be trusted: nothing in it is executed.
        out: the folder to create.
        vocab: the characters, in the order of the model's ids; by default those that the file's metadata names, as
            `charjax.export.write_torch` writes them.

    Raises:
        UserError: the file is not such a state_dict or does not say its characters, the vocabulary has another size,
            torch is not installed, or the folder has content already or cannot be written.
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
        check_type("vocab", vocab, Vocab, "such as Vocab.ascii()")
    state_dict, metadata = _read(path)
    try:
        params = from_torch(with_standard_names(state_dict))
        if vocab is None and "vocab" in metadata:
            vocab = Vocab.from_dict(parse_json(metadata["vocab"], "the vocabulary"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    hidden_dim, vocab_size = params["head"]["kernel"].shape
    if vocab is None:
        raise UserError(f"{path} does not say what its {vocab_size} characters are; pass them as --vocab")
    if vocab.size != vocab_size:
        raise UserError(
            f"{path} is for {vocab_size} characters, but the vocabulary has {vocab.size}; pass its own as --vocab"
        )
    model = CharLSTM(vocab_size, hidden_dim, len(params) - 1, dtype="float32")
    save_model(out, model, params, vocab)


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Reads a state_dict and the file's metadata."""
    file = Path(os.path.realpath(path))  # the cache of Hugging Face consists of links
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
        raise UserError(f"{path} needs PyTorch (pip install torch); or save the weights as .safetensors") from error
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises almost anything
            raise UserError(f"{path} is not a state_dict, as torch.save(model.state_dict(), FILE) writes it") from error
    arrays = list(found.values()) if isinstance(found, Mapping) else []
    is_state_dict = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    if not is_state_dict or not all(isinstance(one, torch.Tensor) and one.layout == torch.strided for one in arrays):
        raise UserError(f"{path} is not a state_dict of tensors: save model.state_dict() alone")
    # A tensor may repeat its few numbers any number of times.
    if sum(array.numel() for array in arrays) > size:
        raise UserError(f"{path} is damaged: its tensors have more numbers than the file has bytes")
    return found
