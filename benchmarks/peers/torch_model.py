"""The model in PyTorch, as `charjax.interop` describes it; imports no JAX."""

import numpy as np
import torch

from benchmarks.peers.torch_device import DEVICE

State = list[tuple[torch.Tensor, ...]]
# As JAX's CPU code does: PyTorch would take many times longer for the smallest numbers.
torch.set_flush_denormal(True)


class Model(torch.nn.Module):
    """LSTM layers, in one `nn.LSTM` or each in one of its own, and the head; time-major."""

    def __init__(self, vocab: int, hidden: int, layers: int, *, stacked: bool) -> None:
        super().__init__()
        depths = [1] * layers if stacked else [layers]
        self.parts = torch.nn.ModuleList(
            torch.nn.LSTM(hidden if n else vocab, hidden, depth) for n, depth in enumerate(depths)
        )
        self.head = torch.nn.Linear(hidden, vocab)
        self.to(DEVICE)
        for name, parameter in self.named_parameters():
            # PyTorch adds two biases: if both were trained, they would learn at twice the rate.
            parameter.requires_grad_("bias_hh" not in name)

    def forward(
        self, x: torch.Tensor, state: State, masks: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, State]:
        """Maps x [T, B, V] to logits [T, B, V], and the state to the next; masks [B, H] multiply the parts' outputs."""
        after = []
        for n, (part, before) in enumerate(zip(self.parts, state, strict=True)):
            x, last = part(x, before)
            x = x * masks[n] if masks else x
            after.append(last)
        return self.head(x), after

    def zero_state(self, batch: int, dtype: torch.dtype) -> State:
        """Returns (h, c) of zeros for each part."""
        shapes = [(part.num_layers, batch, part.hidden_size) for part in self.parts]
        return [tuple(torch.zeros(shape, dtype=dtype, device=DEVICE) for _ in "hc") for shape in shapes]

    def arrays(self) -> dict[str, torch.Tensor]:
        """Returns the parameters by the names of `charjax.interop.to_torch`; writing to them changes the model."""
        layers = [(part, n) for part in self.parts for n in range(part.num_layers)]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        found = {
            f"lstm.{name}_l{number}": getattr(part, f"{name}_l{n}")
            for number, (part, n) in enumerate(layers)
            for name in names
        }
        return found | {"head.weight": self.head.weight, "head.bias": self.head.bias}

    @torch.no_grad()
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Copies charjax's parameters in place, so that the weights stay flat."""
        for name, parameter in self.arrays().items():
            parameter.copy_(torch.as_tensor(arrays[name]))
