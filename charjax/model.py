"""The character-level LSTM language model, in flax.linen."""

import contextlib
import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp

from charjax.array_types import Array, LSTMCarry, LSTMWeights, Params
from charjax.config import ModelConfig
from charjax.distributed.mesh import use_all_cores
from charjax.errors import UserError, check_type, checked_whole
from charjax.host.jax_modes import in_default_modes
from charjax.ops.lstm.api import default_dtype, lstm, lstm_stack
from charjax.ops.lstm.dropout import drop, keep_per_sequence
from charjax.ops.lstm.gates import matmul_in
from charjax.ops.lstm.reference import Initializer, LSTMCell

Carry = tuple[LSTMCarry, ...]

# Layer 0 reads one-hot rows, so a single weight row must be able to move the gates. With the usual 1 / sqrt(V), which
# assumes a sum over V inputs, they barely move for many thousands of steps.
ONE_HOT_INIT = nn.initializers.normal(2.0)


class LSTMLayer(nn.Module):
    """One LSTM layer over T characters; see `charjax.ops.lstm` for the equations and the implementations.

    Attributes:
        hidden_dim: H.
        input_dim: D.
        implementation: "flax" runs `flax.linen.scan` over `LSTMCell`; the others compute the same function.
        dtype: the matmul operand format.
        w_ih_init: the initializer for the input weights.
    """

    hidden_dim: int
    input_dim: int
    implementation: str | None = None
    dtype: str = "float32"
    w_ih_init: Initializer = nn.initializers.lecun_normal()

    def setup(self) -> None:
        """Declares the cell, which owns the parameters regardless of the implementation."""
        self.cell = LSTMCell(self.hidden_dim, self.input_dim, self.dtype, self.w_ih_init)

    @in_default_modes
    def __call__(self, x: Array, carry: LSTMCarry) -> tuple[Array, LSTMCarry]:
        """Maps x [B, T, D] float or [B, T] integer and carry [B, H] to (y [B, T, H], carry)."""
        return lstm(self.cell.weights, x, carry, implementation=self.implementation, dtype=self.dtype)


class Head(nn.Module):
    """The affine map from the hidden state to logits, with float32 parameters `kernel` [H, V] and `bias` [V].

    Attributes:
        hidden_dim: H.
        vocab_size: V.
        dtype: the matmul operand format.
    """

    hidden_dim: int
    vocab_size: int
    dtype: str = "float32"

    def setup(self) -> None:
        """Declares the parameters."""
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.hidden_dim, self.vocab_size))
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))

    def __call__(self, x: Array) -> Array:
        """Maps x [B, T, H] to logits [B, T, V] float32."""
        return matmul_in(x, self.kernel, jnp.dtype(self.dtype)) + self.bias[None, None]


class CharLSTM(nn.Module):
    """Predicts the next character at every position with a stack of LSTM layers (Graves 2013).

    Character ids select rows of layer 0's input weights, as one-hot inputs would. Dropout is applied to the output of
    every layer (between layers and before the head) but never to the recurrent state (Zaremba et al. 2014), with one
    mask per sequence and window (variational dropout, Gal and Ghahramani 2016).

    Attributes:
        vocab_size: V, the number of characters.
        hidden_dim: H, units per layer.
        hidden_layers: the number of layers.
        dropout: the probability of zeroing an output during training.
        implementation: how each layer is computed; see `charjax.ops.lstm`.
        dtype: the matmul operand format, "float32" or "bfloat16".

    Raises:
        UserError: a size, probability or dtype is out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from charjax import CharLSTM, init_carry, init_params
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1)
        >>> params = init_params(jax.random.key(0), model)
        >>> logits, carry = model.apply({"params": params}, jnp.array([[0, 3, 1]]), init_carry(model, 1))
        >>> logits.shape
        (1, 3, 5)
    """

    vocab_size: int
    hidden_dim: int = 512
    hidden_layers: int = 1
    dropout: float = 0.0
    implementation: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Checks the attributes."""
        super().__post_init__()
        checked_whole("vocab_size", self.vocab_size)
        self.config  # noqa: B018 -- checks the other attributes

    @classmethod
    def from_config(cls, config: ModelConfig, vocab_size: int) -> "CharLSTM":
        """Builds the model described by a config; the dtype "auto" becomes the faster one on this machine."""
        dtype: str = config.dtype
        if dtype == "auto":
            # Finding it out starts JAX, after which `fit` could no longer make each core a device.
            use_all_cores()
            dtype = default_dtype()
        return cls(
            vocab_size=vocab_size,
            hidden_dim=config.hidden_dim,
            hidden_layers=config.hidden_layers,
            dropout=config.dropout,
            implementation=config.implementation,
            dtype=dtype,
        )

    @property
    def config(self) -> ModelConfig:
        """The model's settings as a `ModelConfig`, which validates them."""
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
        self,
        ids: Array,
        carry: Carry,
        *,
        train: bool = False,
        stream_ids: Array | None = None,
        dropout: Array | None = None,
    ) -> tuple[Array, Carry]:
        """Computes next-character logits for T characters.

        Args:
            ids: [B, T] integer, the characters.
            carry: the state before the first character, one `LSTMCarry` of [B, H] float32 per layer; see `init_carry`.
            train: whether to apply dropout; if dropout > 0, this requires a PRNG key, `rngs={"dropout": key}`.
            stream_ids: [B] integer, one number per row, from which its dropout mask is derived, so that the mask does
                not depend on the other rows of the batch; 0 to B-1 by default.
            dropout: [] float32, overrides the model's dropout rate; it may be traced.

        Returns:
            logits [B, T, V] float32, predicting the character after each position, and the carry after the last one.
        """
        rate = self.dropout if dropout is None else dropout
        keep = self._keep(ids.shape, stream_ids, rate) if train and (dropout is not None or self.dropout > 0) else ()
        y, carry = lstm_stack(
            [layer.cell.weights for layer in self.layer],
            ids,
            carry,
            keep=keep[:-1],
            rate=rate,
            implementation=self.implementation,
            dtype=self.dtype,
        )
        return self.head(drop(y, keep[-1], rate) if keep else y), carry

    def _keep(self, shape: tuple[int, ...], stream_ids: Array | None, rate: float | Array) -> tuple[Array, ...]:
        """Returns each layer's mask of the outputs that dropout keeps, [B, T, H], the same at every step."""
        sequence_ids = jnp.arange(shape[0]) if stream_ids is None else stream_ids
        keys = [self.make_rng("dropout") for _ in self.layer]
        masks = (keep_per_sequence(key, rate, sequence_ids, (1, self.hidden_dim)) for key in keys)
        return tuple(jnp.broadcast_to(mask, (*shape, self.hidden_dim)) for mask in masks)


@in_default_modes
def init_carry(model: CharLSTM, batch_size: int) -> Carry:
    """Returns the initial state, one zero `LSTMCarry` of [batch_size, H] float32 per layer.

    Examples:
        >>> from charjax import CharLSTM, init_carry
        >>> carry = init_carry(CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=2), batch_size=3)
        >>> len(carry), carry[0].c.shape
        (2, (3, 8))
    """
    check_model(model)
    batch_size = checked_whole("batch_size", batch_size, least=0)
    # Separate arrays, because a buffer that appears twice cannot be donated.
    zeros = functools.partial(jnp.zeros, (batch_size, model.hidden_dim), jnp.float32)
    return tuple(LSTMCarry(zeros(), zeros()) for _ in range(model.hidden_layers))


@in_default_modes
def init_params(key: Array, model: CharLSTM) -> dict[str, dict[str, Array]]:
    """Returns random initial parameters (float32): `layer_0` to `layer_{L-1}`, each with a `cell`, and the `head`.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, init_params
        >>> params = init_params(jax.random.key(0), CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1))
        >>> params["head"]["kernel"].shape
        (8, 5)
    """
    check_model(model)
    # Parameters do not depend on the implementation, and "scan" runs everywhere.
    variables = model.clone(implementation="scan").init(
        checked_key(key), jnp.zeros((1, 1), jnp.int32), init_carry(model, 1)
    )
    return variables["params"]


def check_model(model: CharLSTM) -> None:
    """Checks that `model` is a `CharLSTM`.

    Raises:
        UserError: it is not.
    """
    check_type("model", model, CharLSTM, "make one with CharLSTM, or load one with load_model")


def checked_key(key: Array) -> Array:
    """Returns PRNG keys [] or [B] as typed keys; raw uint32 keys, as from `jax.random.PRNGKey`, are converted.

    Raises:
        UserError: `key` is neither a typed nor a raw PRNG key (or an array of them).
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if getattr(key, "dtype", None) == jnp.uint32:
        with contextlib.suppress(TypeError, ValueError):  # not the shape of a raw key
            return jax.random.wrap_key_data(key)
    raise UserError("key must be a PRNG key, e.g. jax.random.key(0), or an array of PRNG keys")


def model_to_use(config: ModelConfig, vocab_size: int) -> CharLSTM:
    """Builds a run's model for sampling and scoring on this machine.

    If the implementation that the run was trained with is not available here, a warning is logged and the default one
    is used; all implementations take the same parameters and compute the same function.
    """
    model = CharLSTM.from_config(config, vocab_size)
    try:
        check_serves(model)
    except NotImplementedError as error:
        logging.getLogger("charjax").warning("%s; using the default instead", error)
        return model.clone(implementation=None)
    return model


@in_default_modes
def check_serves(model: CharLSTM) -> None:
    """Checks that the model's implementation is available on this machine, for the model's dtype and size.

    Raises:
        NotImplementedError: the implementation is not available; the message says why.
    """

    def one_step_of_each_kind_of_layer() -> None:
        hidden, gates, carry = model.hidden_dim, 4 * model.hidden_dim, init_carry(model, 1)[0]
        for inputs, x in ((model.vocab_size, jnp.zeros((1, 1), jnp.int32)), (hidden, jnp.zeros((1, 1, hidden)))):
            weights = LSTMWeights(jnp.zeros((inputs, gates)), jnp.zeros((hidden, gates)), jnp.zeros(gates))
            lstm(weights, x, carry, implementation=model.implementation, dtype=model.dtype)

    # The step is only traced, so nothing is compiled or allocated.
    jax.eval_shape(one_step_of_each_kind_of_layer)


def layer_weights(model: CharLSTM, params: Params) -> list[LSTMWeights]:
    """Returns the parameters of each layer."""
    return [LSTMWeights(**params[f"layer_{n}"]["cell"]) for n in range(model.hidden_layers)]
