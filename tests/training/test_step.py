"""The training step: equal to textbook truncated BPTT, on one device and on many."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.compilations import compilations

from charjax.config import TrainConfig
from charjax.data.batching import make_streams
from charjax.distributed.mesh import check_divides, make_mesh, put_streams
from charjax.errors import UserError
from charjax.metrics import cross_entropy
from charjax.model import CharLSTM, init_carry
from charjax.train_state import abstract_train_state, init_train_state
from charjax.training.optimizer import make_optimizer
from charjax.training.step import make_train_step

V, T, B = 13, 8, 8


def make(num_devices=1, *, ids=None, dropout=0.0, config=None, layers=2, implementation=None, microbatches=1):
    """Returns (train_step, state, streams) of a small model on some devices."""
    model = CharLSTM(V, hidden_dim=10, hidden_layers=layers, dropout=dropout, implementation=implementation)
    mesh = make_mesh(jax.devices()[:num_devices])
    optimizer = make_optimizer(config or TrainConfig(learning_rate=0.01, schedule="constant", warmup_frac=0.0), 100)
    if ids is None:
        ids = np.random.default_rng(0).integers(0, V, 500).astype(np.uint8)
    streams = put_streams(make_streams(ids, batch_size=B, seq_len=T), mesh)
    state = init_train_state(jax.random.key(0), model, optimizer, batch_size=B, mesh=mesh)
    step = make_train_step(model, optimizer, seq_len=T, mesh=mesh, microbatches=microbatches)
    return step, state, streams


def leaves(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


def run(steps, **options):
    step, state, streams = make(**options)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, streams)
        losses.append(float(metrics.nats) / int(metrics.chars))
    return losses, state


def test_a_step_equals_textbook_bptt():
    """Compared with autodiff of the plain loss, window by window, with the carry passed on and the same optimizer."""
    ids = (np.arange(B * 2 * T + 1) * 7 % V).astype(np.uint8)  # exactly two windows per sequence
    step, state, streams = make(ids=ids)
    model = CharLSTM(V, hidden_dim=10, hidden_layers=2, implementation="flax")
    optimizer = make_optimizer(TrainConfig(learning_rate=0.01, schedule="constant", warmup_frac=0.0), 100)
    params, carry = jax.device_get(state.params), init_carry(model, B)
    opt_state = optimizer.init(params)
    rows = ids[:-1].reshape(B, 2 * T)
    labels = ids[1:].reshape(B, 2 * T)

    def loss(params, carry, rows, labels):
        logits, after = model.apply({"params": params}, rows, carry)
        return jnp.mean(cross_entropy(logits, labels)), after

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for window in (slice(0, T), slice(T, 2 * T), slice(0, T)):
        if window.start == 0:
            carry = init_carry(model, B)
        (expected, carry), grads = gradient(params, carry, rows[:, window], labels[:, window])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, metrics = step(state, streams)
        assert float(metrics.nats) / int(metrics.chars) == pytest.approx(float(expected), rel=1e-5)
        assert float(metrics.grad_norm) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    for ours, theirs in zip(leaves(state.params), leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for ours, theirs in zip(leaves(state.carry), leaves(carry), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow  # two devices, below and in tests/distributed, run the same code
@pytest.mark.devices(8)
def test_eight_devices_train_like_one():
    one, state_of_one = run(20, num_devices=1, dropout=0.4)
    eight, state_of_eight = run(20, num_devices=8, dropout=0.4)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    for ours, theirs in zip(leaves(state_of_eight.params), leaves(state_of_one.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)  # Adam amplifies rounding


def test_every_character_is_trained_on_once_per_epoch_whatever_the_remainder():
    ids = np.random.default_rng(1).integers(0, V, 491).astype(np.uint8)
    step, state, streams = make(ids=ids)
    windows = (streams.ids.shape[1] - 1) // T
    chars = 0
    for _ in range(windows):
        state, metrics = step(state, streams)
        chars += int(metrics.chars)
    assert chars == len(ids) - 1
    assert int(state.cursor) == 0


def test_each_character_weighs_the_same_in_a_padded_window():
    """Half of the last window is padding; the loss that is differentiated is still divided by B * T."""
    ids = np.random.default_rng(2).integers(0, V, B * T + B * T // 2 + 1).astype(np.uint8)
    step, state, streams = make(ids=ids)
    state, full = step(state, streams)
    _, half = step(state, streams)
    assert int(full.chars) == 2 * int(half.chars) == B * T
    assert float(half.grad_norm) < float(full.grad_norm)


def test_many_steps_in_one_call_equal_many_calls():
    step, state, streams = make(dropout=0.3)
    for _ in range(7):
        state, _ = step(state, streams)
    several, other, _ = make(dropout=0.3)
    other, metrics = several(other, streams, 7)
    assert int(metrics.chars) == pytest.approx(7 * B * T, abs=B * T)
    for ours, theirs in zip(leaves(other), leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_carry_is_passed_on_and_reset_when_the_text_starts_again():
    _, state = run(1)
    assert all(np.abs(leaf).max() > 0 for leaf in leaves(state.carry))
    step, state, streams = make()
    _, spoilt, _ = make()
    spoilt = spoilt.replace(carry=jax.tree.map(lambda leaf: leaf + 1, spoilt.carry))
    state, metrics = step(state, streams)
    spoilt, same = step(spoilt, streams)
    assert float(same.nats) == float(metrics.nats)  # at cursor 0 the carry is reset
    spoilt = spoilt.replace(carry=jax.tree.map(lambda leaf: leaf + 1, spoilt.carry))
    _, expected = step(state, streams)
    _, other = step(spoilt, streams)
    assert float(other.nats) != float(expected.nats)


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed():
    ids = np.zeros(B * T + 1, np.uint8)  # the same window at every step
    config = TrainConfig(learning_rate=1e-12, schedule="constant", warmup_frac=0.0)
    losses, _ = run(3, ids=ids, dropout=0.5, config=config)
    assert len(set(losses)) == 3


def test_the_state_is_donated():
    step, state, streams = make()
    step(state, streams)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.carry)))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_one_compilation_serves_all_steps(num_devices):
    config = TrainConfig(beta1=0.7)  # of no other test, whose program would be used again
    step, state, streams = make(num_devices, config=config)
    with compilations() as compiled:
        state, _ = step(state, streams)
    assert len(compiled) == 1
    again, _, _ = make(num_devices, config=config)
    with compilations() as compiled:
        for num_steps, rate_scale in ((1, 1.0), (2, 0.5), (5, 0.25)):
            state, _ = step(state, streams, num_steps, rate_scale)
        again(state, streams)
        other, state, _ = make(num_devices, config=dataclasses.replace(config, learning_rate=0.5, weight_decay=0.0))
        other(state, streams)
    assert compiled == []


def test_the_rate_scale_multiplies_the_learning_rate():
    def params_after_a_step(learning_rate, rate_scale):
        step, state, streams = make(config=TrainConfig(learning_rate=learning_rate, schedule="constant"))
        return step(state, streams, 5, rate_scale)[0].params

    halved, expected = params_after_a_step(0.02, 0.5), params_after_a_step(0.01, 1.0)
    jax.tree.map(np.testing.assert_array_equal, halved, expected)


@pytest.mark.parametrize("implementation", ["flax", "scan", "custom_vjp"])
def test_gradients_are_reduced_once_outside_the_time_loop(implementation):
    step, state, streams = make(8, implementation=implementation)
    text = step.jitted.lower(state, streams, jnp.int32(1), step.hyperparameters).compile().as_text()
    names = re.findall(r"body=%?([\w.\-]+)", text)
    bodies = {name: re.search(rf"^%{re.escape(name)} .*?^}}", text, re.M | re.S)[0] for name in names}
    # The loop over steps contains the time loops, which must not wait for other devices.
    time_loops = [body for name, body in bodies.items() if not any(other in body for other in names if other != name)]
    assert time_loops
    assert not any("all-reduce" in body for body in time_loops)
    results = [re.split(r" all-reduce(?:-start)?\(", line)[0] for line in text.splitlines() if " all-reduce" in line]
    of_gradients = [result for result in results if f"f32[{V},40]" in result]
    assert len(of_gradients) == 1
    # One all-reduce for all of them; every other one is of a scalar.
    assert all(shape in of_gradients[0] for shape in ("f32[10,40]", "f32[40]", f"f32[10,{V}]", f"f32[{V}]"))
    assert all(not re.search(r"\[\d", result) for result in results if result not in of_gradients)


def test_the_abstract_state_has_the_shapes_and_shardings_of_the_real_one():
    mesh = make_mesh()
    model = CharLSTM(V, hidden_dim=10, hidden_layers=2)
    optimizer = make_optimizer(TrainConfig(), 100)
    abstract = abstract_train_state(model, optimizer, batch_size=B, mesh=mesh)
    state = init_train_state(jax.random.key(0), model, optimizer, batch_size=B, mesh=mesh)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.sharding.is_equivalent_to(theirs.sharding, len(ours.shape))


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(UserError, match=r"batch_size 13 .* 2 devices; try batch_size 12"):
        init_train_state(jax.random.key(0), CharLSTM(V), optax.sgd(0.1), batch_size=13, mesh=make_mesh())


def test_streams_made_for_another_seq_len_are_refused():
    step, state, _ = make()
    streams = put_streams(make_streams(np.arange(200, dtype=np.uint8) % V, batch_size=B, seq_len=T + 1), make_mesh())
    with pytest.raises(ValueError, match=f"windows of seq_len {T}"):
        step(state, put_streams(streams, make_mesh(jax.devices()[:1])))


@pytest.mark.parametrize(
    ("implementation", "num_devices", "microbatches"),
    [
        (None, 1, 2),
        (None, 1, 8),
        (None, 2, 4),
        pytest.param("scan", 1, 8, marks=pytest.mark.slow),
        pytest.param("custom_vjp", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_microbatches_give_the_same_result(implementation, num_devices, microbatches):
    options = {"dropout": 0.3, "implementation": implementation}
    whole, state_of_whole = run(20, **options)
    parts, state_of_parts = run(20, num_devices=num_devices, microbatches=microbatches, **options)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for ours, theirs in zip(leaves(state_of_parts.carry), leaves(state_of_whole.carry), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
def test_microbatches_take_less_memory_for_the_backward_pass():
    memory = []
    for microbatches in (1, 8):
        step, state, streams = make(microbatches=microbatches, implementation="scan", dropout=0.3)
        compiled = step.jitted.lower(state, streams, jnp.int32(1), step.hyperparameters).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert memory[1] < 0.5 * memory[0]


def test_microbatches_are_summed_before_the_all_reduce():
    step, state, streams = make(2, microbatches=4, dropout=0.3)
    text = step.jitted.lower(state, streams, jnp.int32(1), step.hyperparameters).compile().as_text()
    assert len([line for line in text.splitlines() if " all-reduce" in line and f"f32[{V},40]" in line]) == 1


def spoilt(*windows):
    """Returns ids that make some windows of sequence 3 NaN: they contain an id beyond the vocabulary."""
    ids = np.random.default_rng(0).integers(0, V, B * 8 * T + 1).astype(np.uint8)
    for window in windows:
        ids[3 * 8 * T + window * T + T // 2] = V
    return ids


@pytest.mark.parametrize(("num_devices", "microbatches"), [(1, 1), (2, 1), (2, 4)])
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(num_devices, microbatches):
    step, state, streams = make(num_devices, ids=spoilt(2), microbatches=microbatches, dropout=0.3)
    for _ in range(2):
        state, metrics = step(state, streams)
    assert (int(metrics.skipped), int(metrics.skipped_in_a_row)) == (0, 0)
    before = [leaves(part) for part in (state.params, state.opt_state, state.carry)]
    state, metrics = step(state, streams)
    assert (int(metrics.skipped), int(metrics.skipped_in_a_row), int(metrics.chars)) == (1, 1, 0)
    assert (float(metrics.nats), float(metrics.grad_norm)) == (0, 0)
    assert (int(state.step), int(state.cursor), int(state.skipped)) == (3, 3, 1)
    for ours, theirs in zip(
        [leaves(part) for part in (state.params, state.opt_state, state.carry)], before, strict=True
    ):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
    state, metrics = step(state, streams)
    assert (int(metrics.skipped), int(state.skipped), int(metrics.chars)) == (0, 0, B * T)
    assert np.isfinite(float(metrics.nats))


def test_skipped_steps_in_a_row_are_counted_across_calls():
    step, state, streams = make(ids=spoilt(1, 2, 4))
    state, first = step(state, streams, 2)
    assert (int(first.skipped), int(first.skipped_in_a_row), int(first.chars)) == (1, 1, B * T)
    state, second = step(state, streams, 4)
    assert (int(second.skipped), int(second.skipped_in_a_row), int(second.chars)) == (2, 2, 2 * B * T)
    assert float(second.grad_norm) > 0
    assert int(state.skipped) == 0


def test_a_gradient_that_is_not_finite_skips_the_step_too():
    """The loss sqrt(0) is finite; its gradient is not."""
    model = CharLSTM(V, hidden_dim=10, hidden_layers=1)
    infinite = optax.GradientTransformation(lambda params: (), lambda grads, state, params: (grads, state))
    mesh = make_mesh(jax.devices()[:1])
    streams = put_streams(make_streams(spoilt(), batch_size=B, seq_len=T), mesh)
    state = init_train_state(jax.random.key(0), model, infinite, batch_size=B, mesh=mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charjax.training.step.cross_entropy", lambda logits, labels: jnp.sqrt(0 * logits[..., 0]))
        state, metrics = make_train_step(model, infinite, seq_len=T, mesh=mesh)(state, streams)
    assert int(metrics.skipped) == 1
    assert all(np.isfinite(leaf).all() for leaf in leaves(state.params))


def test_a_batch_that_does_not_divide_into_microbatches_is_refused():
    mesh = make_mesh(jax.devices()[:2])
    with pytest.raises(UserError, match=r"batch_size 12 .* 2 devices x 4 microbatches; try batch_size 16"):
        check_divides(12, mesh, 4)
    with pytest.raises(UserError, match=r"batch_size 7 .* over 3 microbatches; try batch_size 6"):
        check_divides(7, make_mesh(jax.devices()[:1]), 3)
