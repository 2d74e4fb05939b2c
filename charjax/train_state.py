"""All that training goes on from, and where it lies on the devices."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from charjax.array_types import Array, Params
from charjax.distributed.mesh import OVER_BATCH, REPLICATED, check_divides, make_mesh
from charjax.model import Carry, CharLSTM, init_carry, init_params


@flax.struct.dataclass
class TrainState:
    """All that training goes on from.

    Attributes:
        step: [] int32, optimizer steps taken.
        cursor: [] int32, the window of the streams that comes next.
        params: the model's parameters, float32, a copy on each device.
        opt_state: optax state.
        carry: the recurrent state after the window before, split over the devices.
        skipped: [] int32, how many of the latest steps were skipped in a row, because they were not finite.
        key: PRNG key that each step's dropout key is derived from.
    """

    step: Array
    cursor: Array
    params: Params
    opt_state: optax.OptState
    carry: Carry
    skipped: Array
    key: Array


# PartitionSpecs in the place of arrays.
STATE_SPECS: Any = TrainState(
    step=REPLICATED,  # type: ignore[arg-type]
    cursor=REPLICATED,  # type: ignore[arg-type]
    params=REPLICATED,
    opt_state=REPLICATED,
    carry=OVER_BATCH,  # type: ignore[arg-type]
    skipped=REPLICATED,  # type: ignore[arg-type]
    key=REPLICATED,  # type: ignore[arg-type]
)


def init_train_state(
    key: Array,
    model: CharLSTM,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
) -> TrainState:
    """A fresh state, created where it belongs on the mesh.

    Args:
        key: PRNG key; initial parameters and all dropout follow from it.
        model: the model.
        optimizer: optax transformation; see `make_optimizer`.
        batch_size: B, streams over all devices together.
        mesh: devices; by default all.

    Raises:
        UserError: batch_size is no multiple of the number of devices.
    """
    mesh = mesh or make_mesh()
    check_divides(batch_size, mesh)
    return jax.jit(_initializer(model, optimizer, batch_size), out_shardings=state_shardings(mesh))(key)


def abstract_train_state(
    model: CharLSTM, optimizer: optax.GradientTransformation, *, batch_size: int, mesh: Mesh | None = None
) -> TrainState:
    """The state's shapes, dtypes and shardings as `jax.ShapeDtypeStruct`s, which a restore fills."""
    shapes = jax.eval_shape(_initializer(model, optimizer, batch_size), jax.random.key(0))

    def placed(sharding: NamedSharding, subtree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), subtree)

    return jax.tree.map(placed, state_shardings(mesh or make_mesh()), shapes)


def state_shardings(mesh: Mesh) -> Any:
    """Where each part of a TrainState lies on a mesh: a TrainState of `NamedSharding`s."""
    return jax.tree.map(functools.partial(NamedSharding, mesh), STATE_SPECS)


def _initializer(model: CharLSTM, optimizer: optax.GradientTransformation, batch_size: int) -> Any:
    def init(key: Array) -> TrainState:
        params_key, dropout_key = jax.random.split(key)
        params = init_params(params_key, model)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            cursor=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            carry=init_carry(model, batch_size),
            skipped=jnp.zeros((), jnp.int32),
            key=dropout_key,
        )

    return init
