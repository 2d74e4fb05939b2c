"""Writes a PyTorch state_dict as a safetensors file."""

import json
from pathlib import Path

from charjax.export.loading import load_to_export
from charjax.host.atomic_file import make_folder_of
from charjax.interop.torch import to_torch
from charjax.runs.safetensors_file import write_arrays

# Example code that reads the file; FILE stands for its name.
READER = '''\
# pip install torch safetensors
import torch
from safetensors.torch import load_file


class CharLSTM(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        vocab_size, hidden_dim = weights["head.weight"].shape
        layers = sum("weight_hh" in name for name in weights)
        self.lstm = torch.nn.LSTM(vocab_size, hidden_dim, layers, batch_first=True)
        self.head = torch.nn.Linear(hidden_dim, vocab_size)
        self.load_state_dict(weights)

    def forward(self, ids, state=None):
        """Maps ids [B, T] and a state (h, c), each [L, B, H], to logits [B, T, V] and the next state."""
        one_hot = torch.nn.functional.one_hot(ids, self.head.out_features).float()
        y, state = self.lstm(one_hot, state)
        return self.head(y), state


model = CharLSTM(load_file("FILE"))
'''


def write_torch(run: str | Path, out: str | Path) -> None:
    """Writes a model's weights for `torch.nn.LSTM` and `torch.nn.Linear` as a safetensors file; does not need torch.

    The arrays have the same names as in `charjax.interop.to_torch`. The metadata contains the vocabulary, in the format
    of vocab.json, under "vocab". `import_model` can read the file back.

    Args:
        run: a run folder, or any folder with the three model files.
        out: the file to write; an existing file is replaced.

    Raises:
        UserError: the run does not contain a model, or `out` is a folder or a file of the run.
        OSError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> import jax
        >>> from charjax import CharLSTM, Vocab, import_model, init_params, load_model, save_model
        >>> from charjax.export import write_torch
        >>> model = CharLSTM(Vocab.ascii().size, hidden_dim=8, hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/run", model, init_params(jax.random.key(0), model), Vocab.ascii())
        ...     write_torch(f"{folder}/run", f"{folder}/model.safetensors")
        ...     import_model(f"{folder}/model.safetensors", f"{folder}/imported")
        ...     load_model(f"{folder}/imported")[0].hidden_dim
        8
    """
    _, params, vocab = load_to_export(run, out)
    make_folder_of(Path(out))
    write_arrays(Path(out), to_torch(params), {"format": "pt", "vocab": json.dumps(vocab.to_dict())})
