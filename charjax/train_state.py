"""The training state and its placement on the devices."""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Array, Params
from charjax.distributed.mesh import OVER_BATCH, REPLICATED, check_divides, checked_mesh
from charjax.errors import check_type
from charjax.host.jax_modes import in_default_modes
from charjax.model import Carry, CharLSTM, check_model, checked_key, init_carry, init_params

# Number of compiled initializers cached in the process, so that a second run with the same settings compiles nothing.
_INITIALIZERS_KEPT = 16


class TrainState(flax.struct.PyTreeNode):
    """The complete training state, which together with the text is enough to resume training bit for bit.

    Attributes:
        step: [] int32, optimizer steps taken.
        cursor: [] int32, index of the next window.
        params: the model's parameters, float32, with a copy on each device.
        opt_state: the optax state.
        carry: the recurrent state after the previous window, split over the devices.
        skipped: [] int32, number of most recent consecutive steps skipped because of a non-finite loss or gradient.
        key: PRNG key from which the dropout key of each step is derived.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, TrainConfig, TrainState, init_train_state, make_mesh, make_optimizer
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1)
        >>> optimizer = make_optimizer(TrainConfig(), total_steps=4)
        >>> state = init_train_state(jax.random.key(0), model, optimizer, batch_size=2, mesh=mesh)
        >>> isinstance(state, TrainState), int(state.step), state.carry[0].h.shape
        (True, 0, (2, 8))
    """

    step: Array
    cursor: Array
    params: Params
    opt_state: optax.OptState
    carry: Carry
    skipped: Array
    key: Array

    def __repr__(self) -> str:
        """Returns a single line with sizes instead of the arrays."""
        sizes = [f"{name}={_size_of(getattr(self, name))}" for name in ("params", "opt_state", "carry")]
        scalars = [f"{name}={_scalar(getattr(self, name))}" for name in ("step", "cursor", "skipped")]
        return f"TrainState({', '.join(scalars + sizes)})"


def _size_of(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return f"<{sum(math.prod(getattr(leaf, 'shape', ())) for leaf in leaves):,} numbers in {len(leaves)} arrays>"


def _scalar(leaf: Any) -> str:
    """Formats a scalar as its value, or as its type if it is traced, donated or not an array."""
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and not leaf.is_deleted():
        return str(int(leaf)) if leaf.is_fully_addressable or leaf.is_fully_replicated else "?"
    return f"<{type(leaf).__name__}>"


# A PartitionSpec for each field.
STATE_SPECS: Any = TrainState(
    step=REPLICATED,  # type: ignore[arg-type]
    cursor=REPLICATED,  # type: ignore[arg-type]
    params=REPLICATED,
    opt_state=REPLICATED,
    carry=OVER_BATCH,  # type: ignore[arg-type]
    skipped=REPLICATED,  # type: ignore[arg-type]
    key=REPLICATED,  # type: ignore[arg-type]
)


@in_default_modes
def init_train_state(
    key: Array,
    model: CharLSTM,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
) -> TrainState:
    """Initializes the training state directly on the devices of the mesh.

    Args:
        key: PRNG key that determines the initial parameters and all dropout.
        model: the model.
        optimizer: the optax transformation; see `make_optimizer`.
        batch_size: B, total number of sequences over all devices.
        mesh: devices to use; all by default.

    Raises:
        UserError: batch_size is not a multiple of the number of devices, the mesh was not made by `make_mesh`, or an
            argument has the wrong type.

    Examples:
        >>> import jax
        >>> from charjax import CharLSTM, TrainConfig, init_train_state, make_mesh, make_optimizer
        >>> mesh = make_mesh(jax.devices()[:1])
        >>> model = CharLSTM(vocab_size=5, hidden_dim=8, hidden_layers=1)
        >>> optimizer = make_optimizer(TrainConfig(), total_steps=4)
        >>> state = init_train_state(jax.random.key(0), model, optimizer, batch_size=2, mesh=mesh)
        >>> sorted(state.params)
        ['head', 'layer_0']
    """
    mesh = checked_mesh(mesh)
    check_model(model)
    check_optimizer(optimizer)
    check_divides(batch_size, mesh)
    return _jitted_initializer(model, optimizer.init, batch_size, mesh)(checked_key(key))


@functools.lru_cache(maxsize=_INITIALIZERS_KEPT)
def _jitted_initializer(model: CharLSTM, init_optimizer: optax.TransformInitFn, batch_size: int, mesh: Mesh) -> Any:
    return jax.jit(initializer(model, init_optimizer, batch_size), out_shardings=state_shardings(mesh))


def abstract_train_state(
    model: CharLSTM, optimizer: optax.GradientTransformation, *, batch_size: int, mesh: Mesh | None = None
) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state as `jax.ShapeDtypeStruct`s, for restoring a checkpoint."""
    shapes = jax.eval_shape(initializer(model, optimizer.init, batch_size), jax.random.key(0))

    def placed(sharding: NamedSharding, subtree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), subtree)

    return jax.tree.map(placed, state_shardings(checked_mesh(mesh)), shapes)


def check_optimizer(optimizer: optax.GradientTransformation) -> None:
    """Checks that an optimizer is an optax transformation; raises UserError otherwise."""
    check_type("optimizer", optimizer, optax.GradientTransformation, "make one with make_optimizer or optax")


def state_shardings(mesh: Mesh) -> Any:
    """Returns a TrainState of `NamedSharding`s that place each field on a mesh."""
    return jax.tree.map(functools.partial(NamedSharding, mesh), STATE_SPECS)


def initializer(model: CharLSTM, init_optimizer: optax.TransformInitFn, batch_size: int) -> Any:
    """Returns the pure function key -> `TrainState`, ready to be compiled; see `init_train_state`."""

    def init(key: Array) -> TrainState:
        params_key, dropout_key = jax.random.split(key)
        params = init_params(params_key, model)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            cursor=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=init_optimizer(params),
            carry=init_carry(model, batch_size),
            skipped=jnp.zeros((), jnp.int32),
            key=dropout_key,
        )

    return init
