import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from charjax.config import TrainConfig
from charjax.training.optimizer import make_optimizer, make_schedule, warn_if_rate_rises

PEAK = 0.01


def rates(total_steps, **fields):
    schedule = make_schedule(TrainConfig(learning_rate=PEAK, **fields), total_steps)
    jitted = jax.jit(schedule)
    values = np.array([schedule(step) for step in range(total_steps)])
    traced = np.array([jitted(jnp.int32(step)) for step in range(total_steps)])
    np.testing.assert_allclose(traced, values, rtol=1e-5)
    return values


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_warmup_rises_evenly_from_the_first_step_to_the_peak(schedule):
    values = rates(40, schedule=schedule, warmup_frac=0.2, epochs=2, decay_every=5)
    np.testing.assert_allclose(values[:8], PEAK * np.arange(1, 9) / 8, rtol=1e-5)


def test_cosine_ends_at_final_lr_frac_on_the_last_step():
    values = rates(41, schedule="cosine", warmup_frac=0, final_lr_frac=0.1)
    np.testing.assert_allclose(values[[0, 20, 40]], [PEAK, PEAK * 0.55, PEAK * 0.1], rtol=1e-5)
    assert np.all(np.diff(values) < 0)


def test_cosine_after_warmup_has_its_middle_between_warmup_and_end():
    values = rates(50, schedule="cosine", warmup_frac=0.2, final_lr_frac=0)
    np.testing.assert_allclose(values[[9, 29, 49]], [PEAK, PEAK / 2, 0], atol=1e-8)


def test_constant_keeps_the_peak_after_warmup():
    values = rates(20, schedule="constant", warmup_frac=0.1)
    np.testing.assert_allclose(values, [PEAK / 2] + [PEAK] * 19, rtol=1e-6)


def test_step_decays_at_epochs_counted_from_the_start_of_training():
    values = rates(60, schedule="step", warmup_frac=0.1, epochs=6, decay_every=2, decay_factor=0.5)
    np.testing.assert_allclose(values[6:20], PEAK, rtol=1e-6)
    np.testing.assert_allclose(values[20:40], PEAK / 2, rtol=1e-6)
    np.testing.assert_allclose(values[40:], PEAK / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "changes", "rates"),
    [
        (100, {"epochs": 20}, "from 0.0001 to 0.00501"),
        (50, {"epochs": 20}, "from 0.00497 to 0.00854"),
        (100, {"epochs": 20, "schedule": "constant", "learning_rate": 0.0001}, None),
        (100, {"epochs": 20, "learning_rate": 0.02}, None),
        (100, {"epochs": 10}, None),
        (1, {"epochs": 20}, None),  # by less than a percent
    ],
)
def test_a_rate_that_rises_because_of_more_epochs_is_logged(caplog, step, changes, rates):
    earlier = TrainConfig(learning_rate=PEAK, epochs=10, warmup_frac=0)
    with jax.transfer_guard("disallow"):
        warn_if_rate_rises(earlier, dataclasses.replace(earlier, **changes), 10, step)
    rise = f"the learning rate rises {rates}, because its cosine schedule now ends after --epochs 20 instead of 10; "
    message = f"{rise}to continue at a low rate, pass --schedule constant and a --learning-rate"
    assert [record.getMessage() for record in caplog.records] == ([message] if rates else [])


@pytest.mark.parametrize("epoch_steps", [7, 49, 331, 100_003])
def test_step_decays_at_exactly_the_boundary_under_jit(epoch_steps):
    config = TrainConfig(schedule="step", warmup_frac=0, epochs=9, decay_every=1, decay_factor=0.5)
    schedule = jax.jit(make_schedule(config, 9 * epoch_steps))
    for epoch in range(1, 9):
        before, after = schedule(epoch * epoch_steps - 1), schedule(epoch * epoch_steps)
        np.testing.assert_allclose(after / before, 0.5, rtol=1e-5)


def test_a_decay_interval_longer_than_int32_never_decays():
    values = rates(3, schedule="step", warmup_frac=0, decay_every=10**11, epochs=1)
    np.testing.assert_allclose(values, PEAK, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
@pytest.mark.parametrize("warmup_frac", [0, 0.05, 1])
def test_a_single_step_runs_at_the_peak(schedule, warmup_frac):
    assert rates(1, schedule=schedule, warmup_frac=warmup_frac) == pytest.approx([PEAK])


def test_warmup_over_the_whole_training_peaks_at_its_last_step():
    np.testing.assert_allclose(rates(10, warmup_frac=1), PEAK * np.arange(1, 11) / 10, rtol=1e-5)


def test_total_steps_below_one_is_refused():
    with pytest.raises(ValueError, match="total_steps must be a whole number of at least 1, not 0"):
        make_optimizer(TrainConfig(), 0)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_the_schedules_are_those_of_optax(schedule):
    config = TrainConfig(learning_rate=PEAK, schedule=schedule, warmup_frac=0.1, epochs=6, decay_every=2)
    warmup = optax.linear_schedule(PEAK / 6, PEAK, 5)
    after = {
        "cosine": optax.cosine_decay_schedule(PEAK, 54, alpha=config.final_lr_frac),
        "constant": optax.constant_schedule(PEAK),
        # From the end of the warm-up on, half a step late, so that no quotient is just below a whole number.
        "step": lambda step: optax.exponential_decay(PEAK, 20, config.decay_factor, staircase=True)(step + 5.5),
    }
    expected = optax.join_schedules([warmup, after[schedule]], [5])
    values = rates(60, schedule=schedule, warmup_frac=0.1, epochs=6, decay_every=2)
    np.testing.assert_allclose(values, [expected(step) for step in range(60)], rtol=1e-5)


def test_an_update_is_that_of_optax_and_takes_other_hyperparameters():
    params = {"kernel": jax.random.normal(jax.random.key(0), (5, 7)), "bias": jnp.ones(7)}
    grads = jax.tree.map(lambda leaf: 5 * jnp.sin(3 * leaf), params)

    def after_three_steps(optimizer, **given):
        state, update, moved = optimizer.init(params), jax.jit(optimizer.update), params
        for _ in range(3):
            updates, state = update(grads, state, moved, **given)
            moved = optax.apply_updates(moved, updates)
        return moved

    config = TrainConfig(learning_rate=PEAK, weight_decay=0.3, clip_norm=0.7, warmup_frac=0.4)
    optimizer = make_optimizer(config, 9)
    adamw = optax.adamw(
        make_schedule(config, 9), config.beta1, config.beta2, weight_decay=0.3, mask={"kernel": True, "bias": False}
    )
    expected = after_three_steps(optax.chain(optax.clip_by_global_norm(0.7), adamw))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after_three_steps(optimizer), expected)
    other = make_optimizer(dataclasses.replace(config, learning_rate=0.5, weight_decay=0.0, clip_norm=9.0), 40)
    taken = after_three_steps(other, hyperparameters=optimizer.hyperparameters)
    jax.tree.map(np.testing.assert_array_equal, taken, after_three_steps(optimizer))


def test_optimizers_share_all_but_their_hyperparameters():
    config = TrainConfig(learning_rate=PEAK)
    shared = make_optimizer(config, 9).shared
    assert make_optimizer(dataclasses.replace(config, learning_rate=1, weight_decay=1, epochs=3), 40).shared is shared
    for change in ({"schedule": "step"}, {"beta1": 0.5}, {"beta2": 0.5}):
        assert make_optimizer(dataclasses.replace(config, **change), 9).shared is not shared


def test_equal_settings_share_one_optimizer_and_others_do_not():
    config = TrainConfig(learning_rate=PEAK)
    assert make_optimizer(config, 9) is make_optimizer(dataclasses.replace(config, seed=1, batch_size=2), 9)
    changes = {
        "learning_rate": 0.5, "schedule": "step", "warmup_frac": 0.5, "final_lr_frac": 0.5, "decay_factor": 0.25,
        "decay_every": 2, "epochs": 3, "weight_decay": 0.5, "beta1": 0.5, "beta2": 0.5,
        "clip_norm": 0.5,
    }  # fmt: skip
    for name, value in changes.items():
        assert make_optimizer(dataclasses.replace(config, **{name: value}), 9) is not make_optimizer(config, 9)
    assert make_optimizer(config, 10) is not make_optimizer(config, 9)


def test_the_averages_decay_as_asked():
    grads = {"a": jnp.array([[3.0]])}
    optimizer = make_optimizer(TrainConfig(beta1=0.6, beta2=0.7, clip_norm=10.0), 10)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["a"], 0.4 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "nu")["a"], 0.3 * 9.0, rtol=1e-6)


def small_params():
    return {
        "layer_0": {"cell": {"w_hh": jnp.ones((3, 12)), "bias": jnp.ones((12,))}},
        "scale": jnp.float32(1),
    }


def test_weight_decay_applies_only_to_matrices():
    config = TrainConfig(learning_rate=PEAK, schedule="constant", warmup_frac=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    params = small_params()
    zero_grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero_grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["layer_0"]["cell"]["w_hh"], -PEAK * 0.5, rtol=1e-6)
    assert not np.any(updates["layer_0"]["cell"]["bias"])
    assert updates["scale"] == 0


def first_moment(clip_norm, grads):
    """Returns Adam's first moment: its updates do not depend on the gradient's length, so clipping shows only here."""
    optimizer = make_optimizer(TrainConfig(clip_norm=clip_norm, beta1=0.9), 10)
    params = jax.tree.map(jnp.zeros_like, grads)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    return optax.tree_utils.tree_get(state, "mu")


def test_only_gradients_longer_than_clip_norm_are_scaled_down():
    grads = {"a": jnp.array([[3.0]]), "b": jnp.array([4.0])}  # norm 5
    np.testing.assert_allclose(first_moment(0.5, grads)["b"], 0.1 * 4.0 * 0.1, rtol=1e-5)
    np.testing.assert_allclose(first_moment(10.0, grads)["b"], 0.1 * 4.0, rtol=1e-5)


def test_a_jitted_update_descends_and_compiles_once():
    traces = []
    optimizer = make_optimizer(TrainConfig(learning_rate=0.1, warmup_frac=0.1), 30)

    def loss(params):
        return sum(jnp.sum((leaf - 2) ** 2) for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = small_params()
    with jax.numpy_rank_promotion("raise"):
        state = optimizer.init(params)
        before = loss(params)
        for _ in range(30):
            params, state = step(params, state)
    assert loss(params) < 0.1 * before
    assert len(traces) == 1
