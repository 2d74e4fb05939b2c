"""The character-level LSTM language model, in flax.linen."""

import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights, Params
from charjax.config import ModelConfig
from charjax.ops.lstm.api import default_dtype, lstm, lstm_stack
from charjax.ops.lstm.dropout import drop, keep_per_stream
from charjax.ops.lstm.gates import matmul_in
from charjax.ops.lstm.reference import Initializer, LSTMCell
from charjax.ops.lstm.single_step import StepWeights, make_step_weights

Carry = tuple[LSTMCarry, ...]

# Layer 0 reads one-hot rows, each of which must move the gates by itself. Scaled by 1 / sqrt(V), as if V inputs
# were added up, they hardly do so for many thousand steps.
ONE_HOT_INIT = nn.initializers.normal(2.0)


class LSTMLayer(nn.Module):
    """One LSTM layer over a window; see `charjax.ops.lstm` for the mathematics and the implementations.

    Attributes:
        hidden_dim: H.
        input_dim: D.
        implementation: "flax" runs `flax.linen.scan` over `LSTMCell`; the others compute the same.
        dtype: format of the products' operands.
        w_ih_init: initializer of the input weights.
    """

    hidden_dim: int
    input_dim: int
    implementation: str | None = None
    dtype: str = "float32"
    w_ih_init: Initializer = nn.initializers.lecun_normal()

    def setup(self) -> None:
        """Declares the cell, which owns the parameters under every implementation."""
        self.cell = LSTMCell(self.hidden_dim, self.input_dim, self.dtype, self.w_ih_init)

    def __call__(self, x: Array, carry: LSTMCarry) -> tuple[Array, LSTMCarry]:
        """X [B, T, D] float or [B, T] integer, carry [B, H] -> (y [B, T, H], carry)."""
        return lstm(self.cell.weights, x, carry, implementation=self.implementation, dtype=self.dtype)


class Head(nn.Module):
    """The affine map from hidden state to logits: `kernel` [H, V] and `bias` [V], float32.

    Attributes:
        hidden_dim: H.
        vocab_size: V.
        dtype: format of the product's operands.
    """

    hidden_dim: int
    vocab_size: int
    dtype: str = "float32"

    def setup(self) -> None:
        """Declares the parameters."""
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.hidden_dim, self.vocab_size))
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))

    def __call__(self, x: Array) -> Array:
        """X [B, T, H] -> logits [B, T, V] float32."""
        return matmul_in(x, self.kernel, jnp.dtype(self.dtype)) + self.bias[None, None]


class CharLSTM(nn.Module):
    """A stack of LSTM layers that predicts the next character at every position (Graves 2013).

    Characters go in as ids, which stand for one-hot rows of layer 0; dropout (Zaremba et al. 2014) falls on the
    output of every layer, between layers and before the head, never on the recurrent state.

    Attributes:
        vocab_size: V, number of characters.
        hidden_dim: H, units per layer.
        hidden_layers: number of layers.
        dropout: probability of zeroing an output while training.
        implementation: how each layer is computed; see `charjax.ops.lstm`.
        dtype: "float32" or "bfloat16", the format of the products' operands.
    """

    vocab_size: int
    hidden_dim: int = 512
    hidden_layers: int = 2
    dropout: float = 0.0
    implementation: str | None = None
    dtype: str = "float32"

    @classmethod
    def from_config(cls, config: ModelConfig, vocab_size: int) -> "CharLSTM":
        """The model that a `ModelConfig` describes; its dtype "auto" becomes what is faster on this machine."""
        return cls(
            vocab_size=vocab_size,
            hidden_dim=config.hidden_dim,
            hidden_layers=config.hidden_layers,
            dropout=config.dropout,
            implementation=config.implementation,
            dtype=default_dtype() if config.dtype == "auto" else config.dtype,
        )

    @property
    def config(self) -> ModelConfig:
        """The model's shape as a `ModelConfig`, which checks it.

        Raises:
            UserError: a size, probability or dtype out of range.
        """
        return ModelConfig(
            hidden_dim=self.hidden_dim,
            hidden_layers=self.hidden_layers,
            dropout=self.dropout,
            implementation=self.implementation,
            dtype=self.dtype,  # type: ignore[arg-type]  # ModelConfig checks it
        )

    def setup(self) -> None:
        """Declares the layers and the head."""
        make = functools.partial(LSTMLayer, self.hidden_dim, implementation=self.implementation, dtype=self.dtype)
        above = [make(self.hidden_dim) for _ in range(self.hidden_layers - 1)]
        # flax names the members after the attribute: layer_0, layer_1, ...
        self.layer = [make(self.vocab_size, w_ih_init=ONE_HOT_INIT), *above]
        self.head = Head(self.hidden_dim, self.vocab_size, self.dtype)

    def __call__(
        self, ids: Array, carry: Carry, *, train: bool = False, stream_ids: Array | None = None
    ) -> tuple[Array, Carry]:
        """Reads a window of characters.

        Args:
            ids: [B, T] integer, the characters.
            carry: the state before the window, one `LSTMCarry` of [B, H] float32 per layer; see `init_carry`.
            train: whether to drop outputs; needs the PRNG key `rngs={"dropout": key}` where dropout > 0.
            stream_ids: [B] integer, the number that each row's dropout is drawn by, so that a row's draws do
                not depend on which rows stand beside it; by default 0 to B-1.

        Returns:
            logits [B, T, V] float32, at each position of the character after it, and the carry after the window.
        """
        keep = self._keep(ids.shape, stream_ids) if train and self.dropout > 0 else ()
        y, carry = lstm_stack(
            [layer.cell.weights for layer in self.layer],
            ids,
            carry,
            keep=keep[:-1],
            rate=self.dropout,
            implementation=self.implementation,
            dtype=self.dtype,
        )
        return self.head(drop(y, keep[-1], self.dropout) if keep else y), carry

    def _keep(self, shape: tuple[int, ...], stream_ids: Array | None) -> tuple[Array, ...]:
        """Which outputs dropout leaves, [B, T, H] per layer."""
        streams = jnp.arange(shape[0]) if stream_ids is None else stream_ids
        keys = [self.make_rng("dropout") for _ in self.layer]
        return tuple(keep_per_stream(key, self.dropout, streams, (shape[1], self.hidden_dim)) for key in keys)


def init_carry(model: CharLSTM, batch_size: int) -> Carry:
    """The state before any character: one zero `LSTMCarry` of [batch_size, H] float32 per layer."""
    # An array each: a buffer that stood in two places could not be donated.
    return tuple(
        LSTMCarry(
            jnp.zeros((batch_size, model.hidden_dim), jnp.float32),
            jnp.zeros((batch_size, model.hidden_dim), jnp.float32),
        )
        for _ in range(model.hidden_layers)
    )


def init_params(key: Array, model: CharLSTM) -> dict[str, dict[str, Array]]:
    """Draws fresh parameters (float32): `layer_0` to `layer_{L-1}`, each with its `cell`, and the `head`."""
    # Parameters do not depend on how layers are computed, and "scan" can be had everywhere.
    variables = model.clone(implementation="scan").init(key, jnp.zeros((1, 1), jnp.int32), init_carry(model, 1))
    return variables["params"]


def model_to_use(config: ModelConfig, vocab_size: int) -> CharLSTM:
    """The model of a run, to sample and to score with on this machine.

    Where the implementation that the run was trained with does not serve here, it is the default one, and the log says
    so: all take the same parameters and compute the same.
    """
    model = CharLSTM.from_config(config, vocab_size)
    try:
        check_serves(model)
    except NotImplementedError as error:
        logging.getLogger("charjax").warning("%s: the default is used in its place", error)
        return model.clone(implementation=None)
    return model


def check_serves(model: CharLSTM) -> None:
    """Checks that the model's implementation can be had on this machine, in the model's dtype and size.

    Raises:
        NotImplementedError: it cannot.
    """

    def one_step_of_each_kind_of_layer() -> None:
        hidden = model.hidden_dim
        carry = LSTMCarry(jnp.zeros((1, hidden)), jnp.zeros((1, hidden)))
        for inputs, x in ((model.vocab_size, jnp.zeros((1, 1), jnp.int32)), (hidden, jnp.zeros((1, 1, hidden)))):
            gates = 4 * hidden
            weights = LSTMWeights(jnp.zeros((inputs, gates)), jnp.zeros((hidden, gates)), jnp.zeros(gates))
            lstm(weights, x, carry, implementation=model.implementation, dtype=model.dtype)

    # Traced alone: nothing is compiled, and no memory taken.
    jax.eval_shape(one_step_of_each_kind_of_layer)


def layer_weights(model: CharLSTM, params: Params) -> list[LSTMWeights]:
    """The parameters of each layer."""
    return [LSTMWeights(**params[f"layer_{n}"]["cell"]) for n in range(model.hidden_layers)]


def step_weights(model: CharLSTM, params: Params) -> StepWeights:
    """The parameters as `charjax.ops.lstm.single_step` takes them, which computes what `model` does, step by step."""
    head = params["head"]
    return make_step_weights(layer_weights(model, params), head["kernel"], head["bias"], jnp.dtype(model.dtype))
