"""Modes of JAX that a user's environment may set: they change nothing that charjax computes."""

import contextlib
import os

import jax
import jax.numpy as jnp
import pytest
from helpers.small_run import TEXT

import charjax
from charjax.cli.main import main
from charjax.host.jax_modes import in_default_modes
from charjax.runs.model_file import load_params

MODES = [
    ("jax_enable_x64", True),
    ("jax_numpy_dtype_promotion", "strict"),
    ("jax_debug_nans", True),
    ("jax_debug_infs", True),
    ("jax_transfer_guard", "disallow"),
    ("jax_default_prng_impl", "rbg"),
    ("jax_default_prng_impl", "unsafe_rbg"),
    ("jax_threefry_partitionable", False),
    ("jax_legacy_prng_key", "error"),
    pytest.param("jax_check_tracer_leaks", True, marks=pytest.mark.slow),  # compiles everything again
]
OPTIONS = """
    --hidden-dim 8 --hidden-layers 2 --dropout 0.3 --batch-size 4 --seq-len 20 --epochs 1 --sample-length 10
"""


@contextlib.contextmanager
def mode(name, value):
    """Sets an option for all threads, as an environment variable does."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def printed(capfdbinary, *arguments):
    """Runs a command line: -> what it prints."""
    assert main(list(map(str, arguments))) == 0, capfdbinary.readouterr().err.decode()
    return capfdbinary.readouterr().out


def everything(folder, capfdbinary):
    """Trains a model and uses it in every way: -> all results."""
    folder.mkdir()
    run, text = folder / "run", folder / "text.txt"
    text.write_text(TEXT)
    printed(capfdbinary, "train", text, "--out", run, *OPTIONS.split())
    commands = {
        "sample": ["sample", run, "--length", 20],
        "several": ["sample", run, "--length", 20, "--num-samples", 2, "--top-k", 3],
        "beam": ["sample", run, "--length", 10, "--beam-width", 3],
        "score": ["score", run, text],
        "dynamic": ["score", run, text, "--dynamic"],
        "neurons": ["neurons", run, text, "--chars", 30],
        "eval": ["eval", run],
    }
    results = {
        name: printed(capfdbinary, *command).replace(str(folder).encode(), b"") for name, command in commands.items()
    }
    params = jax.tree.map(lambda leaf: (leaf.dtype.name, leaf.tolist()), load_params(run)[0])
    return results | {"params": params, "samples": (run / "samples.txt").read_bytes()}


@pytest.fixture(scope="module")
def by_default():
    return {}


@pytest.mark.parametrize(("name", "value"), MODES)
def test_a_mode_changes_nothing(tmp_path, capfdbinary, by_default, name, value):
    if not by_default:
        by_default.update(everything(tmp_path / "by default", capfdbinary))
    with mode(name, value):
        found = everything(tmp_path / "in mode", capfdbinary)
    assert found == by_default


def functional_results():
    """Uses the functional interface inside a caller's own transformations: -> float32 arrays."""
    model = charjax.CharLSTM(5, hidden_dim=8, hidden_layers=2)
    params = charjax.init_params(jax.random.key(0, impl="threefry2x32"), model)
    ids = jnp.arange(20, dtype=jnp.int32).reshape(2, 10) % 5

    def loss(params):
        logits, _ = model.apply({"params": params}, ids, charjax.init_carry(model, 2))
        return (logits**2).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(("name", "value"), MODES[:2])
def test_a_mode_changes_nothing_inside_a_callers_jit(name, value):
    expected = functional_results()
    with mode(name, value):
        found = functional_results()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype == jnp.float32
        assert one.tolist() == other.tolist()


def test_a_generator_leaves_its_callers_modes_alone():
    @in_default_modes
    def count():
        for _ in range(2):
            yield jnp.zeros(()).dtype

    with mode("jax_enable_x64", True):
        dtypes = [(inside, jnp.zeros(()).dtype) for inside in count()]
    assert dtypes == [(jnp.float32, jnp.float64)] * 2


@pytest.mark.filterwarnings("ignore:os.fork")  # what JAX and Python say about it
def test_a_child_forked_after_jax_was_used_is_refused():
    """It hung."""
    charjax.init_carry(charjax.CharLSTM(5, hidden_dim=4, hidden_layers=1), 1)
    child = os.fork()
    if child == 0:
        message = ""
        try:
            in_default_modes(lambda: None)()
        except RuntimeError as error:
            message = str(error)
        os._exit("use multiprocessing.get_context('spawn')" in message)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
