"""Trains models of one architecture on the same text in one program, each with its own rates and seed.

Each device holds some of the models and trains them on the whole batch, so the devices need not communicate. The code
is shared with the training of a single model, with one device on the "data" axis of the mesh; the models are spread
over another axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from charjax.array_types import Array, Params
from charjax.config import TrainConfig
from charjax.data.batching import Streams
from charjax.data.corpus import Corpus
from charjax.data.prefetch import Prefetcher
from charjax.distributed.mesh import DATA_AXIS, REPLICATED
from charjax.model import Carry, CharLSTM
from charjax.train_state import TrainState, initializer
from charjax.training.evaluate import EVAL_WINDOW, EvalMetrics, evaluation_layout, run_windows, zero_carry
from charjax.training.loop import text_budgets
from charjax.training.optimizer import Hyperparameters, make_optimizer
from charjax.training.plan import StepPlan, training_layout
from charjax.training.step import STEPS_KEPT, StepSettings, TrainMetrics, take_steps

MEMBER_AXIS = "members"
_OVER_MEMBERS = PartitionSpec(MEMBER_AXIS)


class Setting(NamedTuple):
    """Settings that may differ between the models in a population."""

    learning_rate: float
    dropout: float
    weight_decay: float
    seed: int


class Population:
    """Trains N models together and returns NumPy arrays [N]; as a context manager, it stops prefetching on exit.

    Attributes:
        plan: the step plan, which all models share.
    """

    def __init__(
        self,
        model: CharLSTM,
        corpus: Corpus,
        config: TrainConfig,
        settings: Sequence[Setting],
        devices: Sequence[jax.Device],
    ) -> None:
        """Initializes the models, which share `model` and `config` apart from their own settings."""
        layout = training_layout(corpus, config)
        validation = evaluation_layout(len(corpus.validation), len(devices))
        config = dataclasses.replace(config, checkpoint_every=None)
        self.plan = StepPlan.of(config, layout.windows)
        optimizer = make_optimizer(config, self.plan.total_steps)
        self._model, self._size = model.clone(dropout=0.0), len(settings)
        self._mesh = _mesh_for(self._size, devices)
        # Padded with copies of the last model, so that all devices have the same number of models.
        self._padding = -self._size % self._mesh.size
        # Every device holds the full text.
        train, held_out = (budget and budget // self._mesh.size for budget in text_budgets(corpus, config, self._mesh))
        self._feed = Prefetcher(corpus.train, layout, self._mesh, budget=train)
        self._validation = Prefetcher(corpus.validation, validation, self._mesh, budget=held_out)
        arrays = _arrays([*settings, *[settings[-1]] * self._padding], optimizer.hyperparameters)
        self._settings, seeds = self._put(arrays)
        carry = zero_carry(self._model, len(validation.begins))
        self._zero_carry = self._put(jax.tree.map(lambda leaf: np.repeat(leaf[None], len(seeds), axis=0), carry))
        self._windows = _jitted_windows(self._model, self._mesh)
        init = _jitted_init(self._model, optimizer.shared, config.batch_size, self._mesh)
        steps = _jitted_steps(self._model, optimizer.shared, config.seq_len, config.microbatches, self._mesh)
        shared = self._feed.abstract_chunk(), np.int32(1)
        lowered = steps.lower(self._abstract(jax.eval_shape(init, None, seeds, None)[0]), self._settings, shared)
        with ThreadPoolExecutor(1) as compiling:
            compiled = compiling.submit(lowered.compile)
            self._state, self._best = init(None, seeds, None)
            self._steps = compiled.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._feed.__exit__(*exception)
        self._validation.__exit__(*exception)

    def take_steps(self, step: int, most: int) -> tuple[int, TrainMetrics]:
        """Takes up to `most` optimizer steps, starting at `step`; returns the number taken and the metrics."""
        window = step % self.plan.steps_per_epoch
        count = min(most, self.plan.steps_to_pause(step), self._feed.end_of_chunk(window) - window)
        shared = self._feed.chunk_at(window), np.int32(count)
        self._state, metrics = self._steps(self._state, self._settings, shared)
        return count, self._of_members(metrics)

    def evaluate(self) -> np.ndarray:
        """Returns the nats per character on the validation text, as `charjax.evaluate` does."""
        sums, carry = [], self._zero_carry
        for window in range(0, self._validation.windows, self._validation.chunk_windows):
            metrics, carry = self._windows(carry, self._state.params, self._validation.chunk_at(window))
            sums.append(self._of_members(metrics))
        nats, chars = (np.concatenate(part, axis=1)[:, : self._validation.windows] for part in zip(*sums, strict=True))
        return np.asarray(np.sum(nats, axis=1, dtype=np.float64) / np.sum(chars, axis=1, dtype=np.int64))

    def keep(self, chosen: Sequence[bool]) -> None:
        """Stores the current parameters of the chosen models as their best."""
        chosen = self._put(np.array([*chosen, *[False] * self._padding]))
        self._best = _keep(self._best, self._state.params, chosen)

    def best(self, member: int) -> Params:
        """Returns the best parameters of a model as NumPy arrays."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[member], self._best)

    def _put(self, members: Any) -> Any:
        return jax.device_put(members, NamedSharding(self._mesh, _OVER_MEMBERS))

    def _abstract(self, members: Any) -> Any:
        """Adds shardings to abstract arrays."""
        placed = NamedSharding(self._mesh, _OVER_MEMBERS)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), members)

    def _of_members(self, results: Any) -> Any:
        """Copies the results to the host and drops the padding."""
        return jax.tree.map(lambda leaf: leaf[: self._size], jax.device_get(results))


def members_at_once(members: int, platform: str) -> int:
    """Returns how many of its models a device trains at the same time.

    A CPU trains them one after another, because the working memory of more than one would not fit in its cache; an
    accelerator trains all of them at once, because it needs wide operations.
    """
    return 1 if platform == "cpu" else members


def _mesh_for(members: int, devices: Sequence[jax.Device]) -> Mesh:
    used = np.array(devices[:members]).reshape(-1, 1)
    return Mesh(used, (MEMBER_AXIS, DATA_AXIS), axis_types=(AxisType.Auto,) * 2)


def _arrays(settings: Sequence[Setting], common: Hyperparameters) -> tuple[StepSettings, Array]:
    """Returns the step settings and the seeds as arrays [N]; dropout is None if no model uses it."""
    dtypes = (np.float32, np.float32, np.float32, np.uint32)
    columns: Any = [np.array(column, dtype) for column, dtype in zip(zip(*settings, strict=True), dtypes, strict=True)]
    rates, dropouts, decays, seeds = columns
    repeated = Hyperparameters(*(np.full(len(settings), value) for value in common))
    hyperparameters = repeated._replace(learning_rate=rates, weight_decay=decays)
    return StepSettings(hyperparameters, dropouts if dropouts.any() else None), seeds


def _compiled(function: Callable[[Any, Any, Any], Any], mesh: Mesh, *, donate: bool = False) -> Any:
    """Compiles function(own, other, shared), where `own` and `other` belong to one model and all models use `shared`.

    The compiled program takes and returns arrays for all models, [N, ...]; with `donate`, `own` is donated.
    """

    def run(own: Any, other: Any, shared: Any) -> Any:
        members = len(jax.tree.leaves((own, other))[0])
        at_once = members_at_once(members, mesh.devices.flat[0].platform)
        return jax.lax.map(lambda member: function(member[0], member[1], shared), (own, other), batch_size=at_once)

    in_specs = (_OVER_MEMBERS, _OVER_MEMBERS, REPLICATED)
    # The check of varying axes is off, because the code shared with single-model training knows only the "data" axis.
    sharded = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=_OVER_MEMBERS, check_vma=False)
    placed = NamedSharding(mesh, _OVER_MEMBERS)
    return jax.jit(sharded, donate_argnums=0 if donate else (), out_shardings=placed)


@functools.lru_cache(maxsize=STEPS_KEPT)
def _jitted_init(model: CharLSTM, optimizer: optax.GradientTransformation, batch_size: int, mesh: Mesh) -> Any:
    """Returns (None, seeds, None) -> (states, best parameters), with zeros for the best parameters."""
    init = initializer(model, optimizer.init, batch_size)

    def run(_: None, seed: Array, __: None) -> tuple[TrainState, Params]:
        state = init(jax.random.key(seed))
        return state, jax.tree.map(jnp.zeros_like, state.params)

    return _compiled(run, mesh)


@functools.lru_cache(maxsize=STEPS_KEPT)
def _jitted_steps(
    model: CharLSTM, optimizer: optax.GradientTransformation, seq_len: int, microbatches: int, mesh: Mesh
) -> Any:
    """Returns (states, settings, (streams, number of steps)) -> (states, metrics); the states are donated."""

    def run(
        state: TrainState, settings: StepSettings, shared: tuple[Streams, Array]
    ) -> tuple[TrainState, TrainMetrics]:
        return take_steps(model, optimizer, seq_len, microbatches, settings, state, *shared)

    return _compiled(run, mesh, donate=True)


@functools.lru_cache(maxsize=STEPS_KEPT)
def _jitted_windows(model: CharLSTM, mesh: Mesh) -> Any:
    """Returns (carries, params, streams) -> (metrics, carries)."""

    def run(carry: Carry, params: Params, streams: Streams) -> tuple[EvalMetrics, Carry]:
        return run_windows(model, EVAL_WINDOW, params, streams, carry)

    return _compiled(run, mesh)


@functools.partial(jax.jit, donate_argnums=0)
def _keep(best: Params, now: Params, chosen: Array) -> Params:
    def one(best: Array, now: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (now.ndim - 1)), now, best)

    return jax.tree.map(one, best, now)
