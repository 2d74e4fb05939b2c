"""`python -m benchmarks.speedrun`: its twin in PyTorch, the two ways of measuring, and what it reads and shows."""

import json
import sys

import jax
import numpy as np
import pytest

from benchmarks import speedrun
from benchmarks.common.problem import initial_params
from benchmarks.common.recipes import RECIPES, as_flags
from benchmarks.peers.judge import BLOCK_SIZE, window_loss
from charjax import CharLSTM, TrainConfig, evaluate, init_carry, init_train_state
from charjax.cli.option_parsing import parse
from charjax.data.batching import make_streams
from charjax.distributed.mesh import make_mesh, put_streams
from charjax.interop import to_torch
from charjax.metrics import cross_entropy
from charjax.training.optimizer import make_optimizer, make_schedule
from charjax.training.step import make_train_step

IDS = np.random.default_rng(0).integers(32, 127, 900).astype(np.uint8)
# Three windows per epoch, of which the last has padding; the decay is large enough to be seen.
OPTIONS = {
    "hidden_dim": 8, "hidden_layers": 1, "batch_size": 4, "seq_len": 70, "epochs": 2.4, "learning_rate": 0.03,
    "weight_decay": 1.0, "clip_norm": 0.5, "warmup_frac": 0.3,
}  # fmt: skip


SIZES = {"hidden_dim": 8, "hidden_layers": 2}


@pytest.fixture
def twin(tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch")
    from benchmarks.peers import torch_speedrun

    (tmp_path / "text.txt").write_bytes(IDS.tobytes())
    return torch_speedrun, lambda **more: torch_speedrun.Training(tmp_path / "text.txt", {**OPTIONS, **more}, "float32")


def test_the_twin_trains_as_charjax_does(twin):
    training = twin[1]()
    config = TrainConfig(**{name: value for name, value in OPTIONS.items() if not name.startswith("hidden")})
    model, mesh = CharLSTM(128, hidden_dim=8, hidden_layers=1), make_mesh(jax.devices()[:1])
    optimizer = make_optimizer(config, training.total_steps)
    state = init_train_state(jax.random.key(0), model, optimizer, batch_size=4, mesh=mesh)
    training.model.load(to_torch(state.params))
    step = make_train_step(model, optimizer, seq_len=70, mesh=mesh)
    streams = put_streams(make_streams(IDS[:810], batch_size=4, seq_len=70), mesh)
    for _ in range(training.total_steps):
        state, metrics = step(state, streams)
        assert float(training.take_step()) == pytest.approx(float(metrics.nats), rel=1e-5)
    assert training.step == int(state.step) == 7
    assert training.evaluate() == pytest.approx(evaluate(model, state.params, IDS[810:], mesh=mesh), abs=2e-5)


def test_the_twin_samples_charjaxs_distributions(twin):
    ours = to_torch(initial_params(SIZES))
    theirs = {name: array.detach().numpy() for name, array in twin[1](hidden_layers=2).model.arrays().items()}
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        if "bias" in name:
            np.testing.assert_array_equal(theirs[name], array)
        else:
            assert np.std(theirs[name]) == pytest.approx(np.std(array), rel=0.1), name
            assert np.abs(theirs[name]).max() == pytest.approx(np.abs(array).max(), rel=0.3), name
    gate = theirs["lstm.weight_hh_l1"][:8]
    np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)


def test_the_twin_lays_a_text_out_as_charjax_does(twin):
    inputs, labels = (part.numpy().T for part in twin[0].lay_out(IDS, 7, 20, burn_in=30))
    streams = make_streams(IDS, batch_size=7, seq_len=20, burn_in=30)
    position = np.arange(inputs.shape[1])
    counted = (streams.first[:, None] <= position) & (position < streams.stop[:, None])
    np.testing.assert_array_equal(inputs, streams.ids[:, :-1])
    np.testing.assert_array_equal(labels, np.where(counted, streams.ids[:, 1:].astype(int), twin[0].UNCOUNTED))


@pytest.mark.parametrize("total_steps", [1, 40])
def test_the_twin_has_the_same_schedule(twin, total_steps):
    config = TrainConfig(learning_rate=0.02, warmup_frac=0.1, final_lr_frac=0.05)
    schedule = make_schedule(config, total_steps)
    for step in range(total_steps):
        assert twin[0].rate_at(step, config, total_steps) == pytest.approx(float(schedule(step)), rel=1e-5)


def test_the_twin_drops_the_same_units_in_a_whole_window(twin):
    (mask, _) = twin[1](dropout=0.25, hidden_layers=2, batch_size=100, seq_len=4)._masks()
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert mask.shape == (100, 8)
    assert (mask == 0).float().mean() == pytest.approx(0.25, abs=0.05)


def test_the_twin_refuses_what_it_does_not_serve(twin):
    with pytest.raises(ValueError, match="has no schedule"):
        twin[1](schedule="step")


def test_windows_begin_in_a_zero_state():
    model, params = CharLSTM(128, **SIZES), initial_params(SIZES)
    begins = np.random.default_rng(3).integers(0, len(IDS) - BLOCK_SIZE, 64)
    windows = IDS[begins[:, None] + np.arange(BLOCK_SIZE + 1)]
    logits, _ = jax.jit(model.apply)({"params": params}, windows[:, :-1], init_carry(model, 64))
    expected = float(cross_entropy(logits, windows[:, 1:]).mean())
    assert window_loss(model, params, IDS, batches=1, seed=3) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("target", RECIPES)
def test_every_recipe_is_one_of_charjax(target):
    command = parse(["train", "text.txt", "--out", "run", *as_flags(RECIPES[target])]).command
    given = {**vars(command.model), **vars(command.train)}
    assert {name: given[name] for name in RECIPES[target]} == RECIPES[target]


def test_a_run_is_read_from_what_it_prints_and_leaves(tmp_path):
    rows = [(10, 3.0, 100.0), (20, 1.8799, None), (40, 1.7, 300.0)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "val_loss": v, "chars_per_second": c}) + "\n" for s, v, c in rows)
    )
    lines = [
        (0.5, "WARNING:jax._src.dispatch:x"),
        *((s / 10, f"step {s}  val {v:.4f}") for s, v, _ in rows),
        (5.0, "saved"),
    ]
    found = speedrun.finished(lines, tmp_path)
    assert found["evaluations"] == [[1.0, 10, 3.0], [2.0, 20, 1.8799], [4.0, 40, 1.7]]
    assert found["whole_seconds"] == 5.0
    # 10 steps at 100 and 20 at 300 characters per second.
    assert found["chars_per_second"] == pytest.approx(30 / (10 / 100 + 20 / 300))
    assert found["log"][0] == [1.0, "step 10  val 3.0000"]
    assert speedrun.reached(found["evaluations"], 1.88) == [2.0, 20, 1.8799]
    assert speedrun.reached(found["evaluations"], 1.6) is None


def test_a_command_that_fails_ends_the_benchmark_and_one_that_is_slow_is_stopped():
    with pytest.raises(SystemExit, match=r"(?s)ended with 3:.*last words"):
        speedrun.run([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])
    forever = "while True: print('step 0: train loss 4.2, val loss 4.1', flush=True)"
    lines = speedrun.run([sys.executable, "-c", forever], most=0.0)
    assert speedrun.nanogpt_losses(lines)[0][1:] == [0, 4.1]


def test_nanogpts_loss_is_the_last_by_the_median_time():
    evaluations = [[1.0, 0, 4.2], [5.0, 50, 3.0], [9.0, 100, 2.0]]
    assert speedrun.last_before([4.0, 6.0, 20.0], evaluations) == 3.0
    assert speedrun.last_before([None, 0.5], evaluations) is None


def result(seconds, speed):
    return {
        "seconds": seconds, "step": seconds and 100, "chars_per_second": speed, "carried": 1.5, "windows": 1.53,
        "compile_seconds": 1.0,
    }  # fmt: skip


def test_a_table_has_ratios_of_the_seeds_that_both_finished():
    recipe = {"batch_size": 32, "seq_len": 50}
    runs = [
        {"charjax": result(4.0, 300.0), "torch": result(8.0, 100.0)},
        {"charjax": result(5.0, 300.0), "torch": result(None, 100.0)},
    ]
    head, _, line = speedrun.table([{"target": 1.88, "recipe": recipe, "runs": runs}]).splitlines()
    cells = dict(zip(*([cell.strip() for cell in row.strip("|").split("|")] for row in (head, line)), strict=True))
    assert cells["charjax s"] == "4.50 (4.00-5.00)"
    assert cells["torch s"] == "-"
    assert cells["time ratio"] == "2.00 (2.00-2.00)"
    assert cells["step ratio"] == "3.00 (3.00-3.00)"
    assert cells["characters"] == "160,000 (160,000-160,000)"
