"""The optimizer: AdamW after clipping by global norm, with a learning rate that warms up and decays."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax

from charjax.config import TrainConfig
from charjax.errors import check_type, checked_whole
from charjax.training.plan import steps_of_run

# The fields of TrainConfig that an optimizer depends on.
_FIELDS = (
    "learning_rate", "schedule", "warmup_frac", "final_lr_frac", "decay_factor", "decay_every", "epochs",
    "weight_decay", "beta1", "beta2", "clip_norm",
)  # fmt: skip
_OPTIMIZERS_KEPT = 32

_log = logging.getLogger("charjax")


def make_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate of each step: linear warm-up, then cosine, constant or step decay.

    Warm-up takes W = round(warmup_frac * total_steps) steps, with rates 1/W, 2/W, ..., 1 times learning_rate, so the
    first step already moves. The cosine (Loshchilov and Hutter 2017) falls from there to final_lr_frac * learning_rate
    at the last step. The step schedule multiplies the rate by decay_factor every decay_every epochs, counted from the
    start of training; an epoch is total_steps / epochs steps.

    Args:
        config: how to train.
        total_steps: total number of optimizer steps in the run, at least 1.

    Returns:
        step (integer, from 0; traced or not) -> [] float, the learning rate.

    Raises:
        ValueError: total_steps is below 1.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, not {total_steps}")
    peak = config.learning_rate
    warmup_steps = max(1, round(config.warmup_frac * total_steps))
    last_warmup = warmup_steps - 1
    decay = _make_decay(config, total_steps, last_warmup)
    if last_warmup == 0:
        return decay
    warmup = optax.linear_schedule(peak / warmup_steps, peak, last_warmup)
    return optax.join_schedules([warmup, decay], [last_warmup])


def _make_decay(config: TrainConfig, total_steps: int, last_warmup: int) -> optax.Schedule:
    """Returns the decay schedule, whose step 0 is the last warm-up step."""
    peak = config.learning_rate
    if config.schedule == "cosine":
        steps = max(1, total_steps - 1 - last_warmup)
        return optax.cosine_decay_schedule(peak, steps, alpha=config.final_lr_frac)
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    # Steps are int32, so a longer interval than int32 can hold never ends during training.
    interval = min(max(1, round(config.decay_every * total_steps / config.epochs)), 2**31 - 1)
    staircase = optax.exponential_decay(peak, interval, config.decay_factor, staircase=True)
    # Offset by half a step, so that at a boundary the float32 quotient cannot round to below the whole number.
    return lambda count: staircase(count + last_warmup + 0.5)


def warn_if_rate_rises(earlier: TrainConfig, config: TrainConfig, steps_per_epoch: int, step: int) -> None:
    """Logs that the learning rate rises where a run is resumed, because more epochs stretch its cosine.

    Args:
        earlier: how the run was trained until now.
        config: how to train on.
        steps_per_epoch: optimizer steps of one epoch.
        step: optimizer steps taken.
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
            "%g; to train on at a low rate, pass --schedule constant and a --learning-rate",
            before, after, config.schedule, config.epochs, earlier.epochs,
        )  # fmt: skip


def make_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Builds AdamW (Loshchilov and Hutter 2019) after clipping the gradient's global norm to config.clip_norm.

    Weight decay applies only to matrices: biases and other leaves of fewer than two dimensions are left out.

    Args:
        config: how to train.
        total_steps: total number of optimizer steps in the run, at least 1.

    Returns:
        An optax transformation, the same object for the same settings. Its `update` takes two keyword arguments, both
        [] float32: `rate_scale` (by default 1) multiplies the scheduled learning rate, and `weight_decay` takes the
        place of the configured one.

    Raises:
        UserError: total_steps is not a whole number of at least 1, or config is not a `TrainConfig`.

    Examples:
        >>> from charjax import TrainConfig, make_optimizer
        >>> optimizer = make_optimizer(TrainConfig(learning_rate=0.01), total_steps=100)
        >>> optimizer is make_optimizer(TrainConfig(learning_rate=0.01, seed=7), total_steps=100)
        True
    """
    check_type("config", config, TrainConfig, "such as TrainConfig(learning_rate=0.01)")
    total_steps = checked_whole("total_steps", total_steps)
    # All other fields keep their defaults: configs that differ only in those share one optimizer and one compiled step.
    return _make_optimizer(TrainConfig(**{name: getattr(config, name) for name in _FIELDS}), total_steps)


@functools.lru_cache(maxsize=_OPTIMIZERS_KEPT)
def _make_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    # optax.adamw, part by part, because its learning rate is a function of the step only.
    adamw = optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2),
        _decay_weights(config.weight_decay),
        _scale_by_rate(make_schedule(config, total_steps)),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _scale_by_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Builds a variant of `optax.scale_by_learning_rate` whose `update` also takes a factor, `rate_scale`."""

    def update(updates: Any, state: Any, params: Any = None, *, rate_scale: Any = 1.0, **_: Any) -> tuple[Any, Any]:
        # The factor multiplies the scalar rate, not the updates: XLA then rounds as if their product were a constant.
        return optax.scale_by_schedule(lambda count: -schedule(count) * rate_scale).update(updates, state)

    return optax.GradientTransformationExtraArgs(optax.scale_by_schedule(schedule).init, update)


def _decay_weights(configured: float) -> optax.GradientTransformationExtraArgs:
    """Builds a variant of `optax.add_decayed_weights` whose `update` also takes another decay, `weight_decay`."""

    def update(updates: Any, state: Any, params: Any = None, *, weight_decay: Any = None, **_: Any) -> tuple[Any, Any]:
        decay = configured if weight_decay is None else weight_decay
        return optax.add_decayed_weights(decay, _is_matrix).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(optax.add_decayed_weights(configured, _is_matrix).init, update)


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
