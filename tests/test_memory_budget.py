"""Memory checks: the estimates, and the sources of the available memory."""

import os

import jax
import pytest
from helpers.small_run import SMALL, small_corpus, small_model

from charjax import fit, generate_text, init_params
from charjax.config import ModelConfig, TrainConfig
from charjax.errors import UserError
from charjax.host import memory
from charjax.host.memory import available_memory, room_for_text
from charjax.memory_budget import check_room_to_train, count_parameters

GB = 10**9


class Accelerator:
    platform, process_index = "gpu", 0

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 8 GB available -> the folder of its system files."""
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    return tmp_path


def write_group(folder, limit, used, files=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text("anon 7\ninactive_file 100\nactive_file 20\n")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_parameters_are_counted_as_the_model_has_them(layers):
    model = small_model(small_corpus(), hidden_layers=layers)
    params = init_params(jax.random.key(0), model)
    assert count_parameters(model.config, model.vocab_size) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_available_memory_is_that_of_the_system(system):
    assert available_memory(jax.devices()) == 8_000_000 * 1024


def test_unknown_memory_passes(system):
    (system / "meminfo").unlink()
    assert available_memory(jax.devices()) is None
    check_room_to_train(ModelConfig(hidden_dim=10**8), TrainConfig(), 128, jax.devices())


@pytest.mark.parametrize(
    ("line", "group", "files"),
    [
        ("0::/box/inner", "cgroup/box", ("memory.max", "memory.current")),
        ("4:memory:/box", "cgroup/memory/box", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("4:memory:/not/seen/in/here", "cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_control_group_limits_the_memory(system, line, group, files):
    (system / "self").mkdir()
    (system / "self" / "cgroup").write_text(f"9:pids:/\n{line}\n")
    write_group(system / group, 5000, 3000, files)
    assert available_memory(jax.devices()) == 5000 - 3000 + 120
    write_group(system / group, "max", 3000, files)
    assert available_memory(jax.devices()) == 8_000_000 * 1024


def test_limits_of_the_shell_limit_the_memory(system, monkeypatch):
    """Beside the arrays, programs take what they take now, or what they will once they are compiled."""
    limits = {"AS": 4 * GB}
    monkeypatch.setattr(memory, "limit_on", limits.get)
    monkeypatch.setattr(memory, "space_for_programs", lambda name: GB // 2 if name == "DATA" else GB)
    (system / "self").mkdir()
    statm, page = system / "self" / "statm", os.sysconf("SC_PAGE_SIZE")
    statm.write_text(f"{GB // page // 2} 9 9 9 0 {GB // page // 4} 0\n")
    assert available_memory(jax.devices()) == 3 * GB // 2
    statm.write_text(f"{3 * GB // page} 9 9 9 0 {GB // page // 4} 0\n")
    assert available_memory(jax.devices()) == pytest.approx(GB // 2, abs=page)
    limits["DATA"] = GB
    assert available_memory(jax.devices()) == pytest.approx(GB // 4, abs=page)
    limits["AS"] = GB
    assert available_memory(jax.devices()) == 0


def test_accelerators_report_their_own_memory():
    devices = [Accelerator({"bytes_limit": 80, "bytes_in_use": used}) for used in (10, 30)]
    assert available_memory(devices) == 50
    assert available_memory([Accelerator(None)]) is None


def test_a_text_may_take_a_quarter_of_the_memory_of_host_and_devices(system):
    host = 8_000_000 * 1024
    assert room_for_text() == room_for_text(jax.devices()) == host // 4
    devices = [Accelerator({"bytes_limit": GB, "bytes_in_use": used}) for used in (0, GB // 2)]
    assert room_for_text(devices) == 2 * (GB // 2) // 4
    devices[1].process_index = 1
    devices[1].stats = None
    assert room_for_text(devices) == GB // 4
    assert room_for_text([Accelerator({"bytes_limit": 100 * GB})]) == host // 4
    (system / "meminfo").unlink()
    assert room_for_text(devices) == GB // 4
    assert room_for_text() is None


def test_every_core_has_a_copy_of_the_parameters_and_a_share_of_the_batch(system):
    model, cpu = ModelConfig(hidden_dim=4000, hidden_layers=2), jax.devices()[:1]  # 3.1 GB a copy
    check_room_to_train(model, TrainConfig(batch_size=64), 128, cpu)
    with pytest.raises(
        UserError, match=r"needs about 26\.1 GB of memory, but only 8\.19 GB is .*JAX_NUM_CPU_DEVICES=1 for one"
    ):
        check_room_to_train(model, TrainConfig(batch_size=64), 128, cpu * 8)
    accelerators = [Accelerator({"bytes_limit": 4 * GB})] * 8
    check_room_to_train(model, TrainConfig(batch_size=64), 128, accelerators)


@pytest.mark.parametrize(
    ("model", "train", "advice"),
    [
        (
            {"hidden_dim": 10**8, "hidden_layers": 2},
            {},
            r"needs about 1\.9\d EB .*reduce --hidden-dim \(currently 100000000\)",
        ),
        ({"hidden_dim": 10**5, "hidden_layers": 1000}, {}, r"or --hidden-layers \(currently 1000\)"),
        ({}, {"batch_size": 10**4, "seq_len": 10**4}, r"reduce --batch-size \(currently 10000\) or --seq-len \("),
    ],
)
def test_the_message_says_what_to_lower(system, model, train, advice):
    with pytest.raises(UserError, match=advice):
        check_room_to_train(ModelConfig(**model), TrainConfig(**train), 128, jax.devices()[:1])


def test_fit_fails_before_it_writes(system, tmp_path):
    corpus = small_corpus()
    with pytest.raises(UserError, match="--hidden-dim"):
        fit(small_model(corpus, hidden_dim=10**8), corpus, SMALL, out=tmp_path / "run")
    (system / "meminfo").write_text("MemAvailable:    7000 kB\n")
    with pytest.raises(UserError, match="reduce --sample-length"):
        fit(small_model(corpus), corpus, SMALL, out=tmp_path / "run", sample_length=10**6)
    assert not (tmp_path / "run").exists()


def test_too_many_samples_are_rejected(system):
    corpus = small_corpus()
    model = small_model(corpus)
    params = init_params(jax.random.key(0), model)
    with pytest.raises(UserError, match=r"generating 100000000 x 500 characters needs about .*--num-samples or"):
        generate_text(model, params, corpus.vocab, num_samples=10**8)
