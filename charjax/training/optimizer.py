"""AdamW optimizer with gradient clipping by global norm and a learning rate that warms up and decays."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from charjax.config import ADAMW_FIELDS, TrainConfig
from charjax.errors import UserError, check_type, checked_whole, in_short
from charjax.training.plan import steps_of_run

_OPTIMIZERS_KEPT = 32

_log = logging.getLogger("charjax")


class Hyperparameters(NamedTuple):
    """Scalar settings of AdamW and its schedule, passed to the compiled step so that new values compile nothing.

    Attributes:
        learning_rate: float32, peak learning rate.
        warmup_steps: int32, at least 1; the last of them runs at the peak.
        decay_steps: int32, at least 1. For the cosine schedule, steps from the peak to the last step; for the step
            schedule, steps from one decay to the next.
        final_lr_frac: float32, final rate of the cosine schedule, as a fraction of the peak.
        decay_factor: float32, factor applied at each decay in the step schedule.
        weight_decay: float32, weight decay of the matrices.
        clip_norm: float32, maximum global norm of the gradient.
    """

    learning_rate: Any
    warmup_steps: Any
    decay_steps: Any
    final_lr_frac: Any
    decay_factor: Any
    weight_decay: Any
    clip_norm: Any


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation whose hyperparameters are arguments of the compiled step; see `make_optimizer`.

    Attributes:
        shared: the underlying transformation, whose `update` takes the hyperparameters as an argument; the same object
            for all optimizers that differ only in their hyperparameters.
        hyperparameters: this optimizer's hyperparameters.
        rate: function on the host from step to learning rate; None if the rate is unknown.
    """

    shared: optax.GradientTransformationExtraArgs
    hyperparameters: Hyperparameters
    rate: Callable[[int], float] | None

    @classmethod
    def of(
        cls,
        shared: optax.GradientTransformationExtraArgs,
        hyperparameters: Hyperparameters,
        rate: Callable[[int], float] | None,
    ) -> Self:
        """Binds hyperparameters to a shared transformation."""
        own = hyperparameters

        def update(
            updates: Any, state: Any, params: Any = None, *, hyperparameters: Hyperparameters | None = None, **_: Any
        ) -> tuple[Any, Any]:
            # Also None if this optimizer is wrapped in optax.chain: make_train_step passes no hyperparameters to it.
            return shared.update(updates, state, params, hyperparameters=hyperparameters or own)

        optimizer = cls(shared.init, update)
        optimizer.shared, optimizer.hyperparameters, optimizer.rate = shared, own, rate
        return optimizer


def make_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Returns a learning-rate schedule: linear warm-up, then cosine decay, a constant rate or step decay.

    Warm-up takes W = round(warmup_frac * total_steps) steps, with rates 1/W, 2/W, ..., 1 times learning_rate, so even
    the first step updates the weights. The cosine schedule (Loshchilov and Hutter 2017) then falls to
    final_lr_frac * learning_rate at the last step. The step schedule multiplies the rate by decay_factor every
    decay_every epochs, counted from the start of training; an epoch is total_steps / epochs steps.

    Args:
        config: training configuration.
        total_steps: total number of optimizer steps in the run, at least 1.

    Returns:
        step ([] integer, from 0; traced or not) -> [] float32, the learning rate.
    """
    return functools.partial(_learning_rate, config.schedule, _hyperparameters(config, total_steps))


def _hyperparameters(config: TrainConfig, total_steps: int) -> Hyperparameters:
    warmup_steps = max(1, round(config.warmup_frac * total_steps))
    if config.schedule == "cosine":
        decay_steps = max(1, total_steps - warmup_steps)
    else:
        # Steps are int32, so an interval too long for an int32 never ends during training.
        decay_steps = min(max(1, round(config.decay_every * total_steps / config.epochs)), 2**31 - 1)
    return Hyperparameters(
        learning_rate=np.float32(config.learning_rate),
        warmup_steps=np.int32(warmup_steps),
        decay_steps=np.int32(decay_steps),
        final_lr_frac=np.float32(config.final_lr_frac),
        decay_factor=np.float32(config.decay_factor),
        weight_decay=np.float32(config.weight_decay),
        clip_norm=np.float32(config.clip_norm),
    )


def _learning_rate(schedule: str | optax.Schedule, given: Hyperparameters, step: Any, xp: Any = jnp) -> Any:
    """Returns the learning rate of a step, computed with `xp`, which is jax.numpy or numpy.

    optax's built-in schedules cannot be used, because they need step counts that are known at compile time.
    """
    if not isinstance(schedule, str):
        return given.learning_rate * schedule(step)
    step = xp.asarray(step, xp.int32)
    rising = xp.float32(step + 1) / xp.float32(given.warmup_steps)
    since_peak = xp.maximum(step - given.warmup_steps + 1, 0)
    if schedule == "cosine":
        angle = math.pi * xp.float32(xp.minimum(since_peak, given.decay_steps)) / xp.float32(given.decay_steps)
        decayed = 0.5 * (1 + xp.cos(angle)) * (1 - given.final_lr_frac) + given.final_lr_frac
    elif schedule == "step":
        decayed = given.decay_factor ** xp.float32(step // given.decay_steps)
    else:
        decayed = xp.float32(1)
    return given.learning_rate * xp.where(since_peak == 0, xp.minimum(rising, 1), decayed)


def warn_if_rate_rises(earlier: TrainConfig, config: TrainConfig, steps_per_epoch: int, step: int) -> None:
    """Warns if the learning rate rises when a run is resumed, because more epochs stretch its schedule.

    Args:
        earlier: training configuration of the run so far.
        config: training configuration to continue with.
        steps_per_epoch: optimizer steps per epoch.
        step: optimizer steps taken so far.
    """
    asked = any(getattr(earlier, name) != getattr(config, name) for name in ("learning_rate", "schedule"))
    if asked or earlier.epochs == config.epochs:
        return
    totals = (steps_of_run(earlier, steps_per_epoch), steps_of_run(config, steps_per_epoch))
    with jax.transfer_guard("allow"):  # the step is a host-side number
        before, after = (
            float(make_schedule(how, total)(min(step, total - 1)))
            for how, total in zip((earlier, config), totals, strict=True)
        )
    if after > 1.01 * before:
        _log.warning(
            "the learning rate rises from %.3g to %.3g, because its %s schedule now ends after --epochs %g instead of "
            "%g; to continue at a low rate, pass --schedule constant and a --learning-rate",
            before, after, config.schedule, config.epochs, earlier.epochs,
        )  # fmt: skip


def make_optimizer(config: TrainConfig, total_steps: int, *, learning_rate: optax.Schedule | None = None) -> Optimizer:
    """Builds AdamW (Loshchilov and Hutter 2019), with gradients first clipped to a global norm of config.clip_norm.

    Weight decay applies only to matrices; biases and other leaves with fewer than two dimensions are excluded.

    Args:
        config: training configuration.
        total_steps: total number of optimizer steps in the run, at least 1.
        learning_rate: an optax schedule, or any other function of the step that JAX can trace, to use instead of the
            configured schedule.

    Returns:
        An optax transformation, the same object for the same settings. Its `update` takes an optional keyword
        argument, `hyperparameters`, which defaults to the optimizer's own; `make_train_step` passes them to the
        compiled step, so that runs with different learning rates, epochs, weight decay or clip norm share one program.

    Raises:
        UserError: total_steps is not a positive integer, config is not a `TrainConfig`, or learning_rate is
            not a function.

    Examples:
        >>> from charjax import TrainConfig, make_optimizer
        >>> optimizer = make_optimizer(TrainConfig(learning_rate=0.01), total_steps=100)
        >>> optimizer is make_optimizer(TrainConfig(learning_rate=0.01, seed=7), total_steps=100)
        True
    """
    check_type("config", config, TrainConfig, "e.g. TrainConfig(learning_rate=0.01)")
    total_steps = checked_whole("total_steps", total_steps)
    if learning_rate is not None and not callable(learning_rate):
        raise UserError(
            f"learning_rate must be an optax schedule or another function of the step, not {in_short(learning_rate)}"
        )
    # All other fields keep their defaults: configs that differ only in those share one optimizer and one compiled step.
    own = TrainConfig(**{name: getattr(config, name) for name in (*ADAMW_FIELDS, "epochs")})
    return _make_optimizer(own, total_steps, learning_rate)


@functools.lru_cache(maxsize=_OPTIMIZERS_KEPT)
def _make_optimizer(config: TrainConfig, total_steps: int, given: optax.Schedule | None) -> Optimizer:
    schedule, own = given or config.schedule, _hyperparameters(config, total_steps)
    if given is not None:
        own = own._replace(learning_rate=np.float32(1))
    rate = functools.partial(_learning_rate, schedule, own, xp=np)
    return Optimizer.of(_adamw(schedule, config.beta1, config.beta2), own, rate)


@functools.lru_cache(maxsize=_OPTIMIZERS_KEPT)
def with_rate_scale(optimizer: optax.GradientTransformation) -> Optimizer:
    """Wraps any optax optimizer so that the training step can scale its updates after a rollback."""
    own = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, *, hyperparameters: Hyperparameters) -> tuple[Any, Any]:
        updates, state = own.update(updates, state, params)
        return jax.tree.map(lambda leaf: hyperparameters.learning_rate * leaf, updates), state

    shared = optax.GradientTransformationExtraArgs(optimizer.init, update)
    return Optimizer.of(shared, Hyperparameters(*[np.float32(1)] * len(Hyperparameters._fields)), None)


@functools.lru_cache(maxsize=_OPTIMIZERS_KEPT)
def _adamw(schedule: str | optax.Schedule, beta1: float, beta2: float) -> optax.GradientTransformationExtraArgs:
    """Builds an AdamW transformation whose `update` takes its hyperparameters as an argument."""

    def adamw(given: Hyperparameters) -> optax.GradientTransformation:
        # optax.adamw assembled from its parts, because its learning rate can only be a function of the step.
        parts = optax.chain(
            optax.scale_by_adam(beta1, beta2),
            optax.add_decayed_weights(given.weight_decay, _is_matrix),
            optax.scale_by_schedule(lambda count: -_learning_rate(schedule, given, count)),
        )
        return optax.chain(optax.clip_by_global_norm(given.clip_norm), parts)

    def init(params: optax.Params) -> Any:
        # The initial state does not depend on the hyperparameters.
        return adamw(Hyperparameters(*[1.0] * len(Hyperparameters._fields))).init(params)

    def update(updates: Any, state: Any, params: Any = None, *, hyperparameters: Hyperparameters) -> tuple[Any, Any]:
        return adamw(hyperparameters).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
