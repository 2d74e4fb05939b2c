"""The optimizer: AdamW behind a clip of the gradient's global norm, its rate on a schedule with warm-up."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from charjax.config import TrainConfig

ADAM_B1 = 0.9
# A character model trains for few steps: Adam's usual 0.999 would remember the second moments of a thousand.
ADAM_B2 = 0.99


def make_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """The learning rate of each step: linear warm-up, then cosine, constant or step decay.

    Warm-up takes W = round(warmup_frac * total_steps) steps, of rates 1/W, 2/W, ..., 1 times learning_rate,
    so the first step moves already. The cosine (Loshchilov and Hutter 2017) goes from there to
    final_lr_frac * learning_rate at the last step. The step schedule multiplies the rate by decay_factor
    every decay_every epochs, counted from the start of training; an epoch is total_steps / epochs steps.

    Args:
        config: how to train.
        total_steps: optimizer steps of the whole training, at least 1.

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
    """The schedule from the warm-up's last step on, which it counts as its step 0."""
    peak = config.learning_rate
    if config.schedule == "cosine":
        steps = max(1, total_steps - 1 - last_warmup)
        return optax.cosine_decay_schedule(peak, steps, alpha=config.final_lr_frac)
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    # An interval longer than training, of which int32 holds the steps, is as good as the longest there is.
    interval = min(max(1, round(config.decay_every * total_steps / config.epochs)), 2**31 - 1)
    staircase = optax.exponential_decay(peak, interval, config.decay_factor, staircase=True)
    # Half a step in: at a boundary the float32 quotient must not round to below the whole number.
    return lambda count: staircase(count + last_warmup + 0.5)


def make_optimizer(config: TrainConfig, total_steps: int, *, rate_scale: float = 1.0) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) after clipping the gradient's global norm to config.clip_norm.

    Weight decay falls on matrices alone; biases and other leaves of fewer than two dimensions are left out.

    Args:
        config: how to train.
        total_steps: optimizer steps of the whole training, at least 1.
        rate_scale: what every learning rate of the schedule is multiplied by.

    Raises:
        ValueError: total_steps is below 1.
    """
    schedule = make_schedule(dataclasses.replace(config, learning_rate=config.learning_rate * rate_scale), total_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=ADAM_B1,
            b2=ADAM_B2,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
