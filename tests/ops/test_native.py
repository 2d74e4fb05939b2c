"""What is particular to the C++ kernel: its compiled forms, its threads, and machines without it."""

import contextlib
import ctypes.util
import functools
import itertools
import platform
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lstm_contract import gradients, make_inputs

from charjax.array_types import LSTMCarry, LSTMWeights
from charjax.config import SampleConfig
from charjax.generation.sampling import make_settings
from charjax.host.cpu import cpu_flags
from charjax.ops.lstm import api, native
from charjax.ops.lstm.api import lstm
from charjax.ops.lstm.native import generation, libraries
from charjax.ops.lstm.native.libraries import INSTRUCTION_SETS

FOLDER = Path(native.__file__).parent


@pytest.fixture
def new_choice():
    """The default implementation is chosen again, here and in the tests after this one."""
    api._default_for_sequences.cache_clear()
    yield
    api._default_for_sequences.cache_clear()


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_every_form_is_built_and_those_of_this_cpu_load():
    names = INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else ("generic",)
    missing = [name for name in names if not (FOLDER / f"_{name}.so").exists()]
    assert not missing  # setup.py lets a form fail to compile unless CHARJAX_REQUIRE_KERNEL is 1
    for name in names:
        ctypes.CDLL(str(FOLDER / f"_{name}.so"))
    runs_here = [name for name in names if INSTRUCTION_SETS[name] <= cpu_flags()]
    assert [library.instructions for library in libraries.libraries()] == runs_here
    assert libraries.better_form() is None


def test_the_kernel_is_built_with_the_lowest_supported_jax(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())
    (lowest,) = (name for name in project["project"]["dependencies"] if name.startswith("jax>="))
    assert lowest.replace(">=", "==") in project["build-system"]["requires"]


def test_a_library_that_is_no_kernel_is_left_out_with_a_word(tmp_path, caplog):
    (tmp_path / "_generic.so").write_text("not a library")
    assert libraries._load("generic", tmp_path / "_generic.so") is None
    assert libraries._load("generic", Path(ctypes.util.find_library("m"))) is None
    first, second = (record.message for record in caplog.records)
    assert first.startswith("the LSTM kernel _generic.so cannot be used: ")
    assert "charjax_lstm_supported" in second
    assert second.endswith("; reinstall charjax")


def test_a_kernel_built_for_a_later_jax_is_left_out_with_a_word(monkeypatch, caplog):
    path = FOLDER / "_generic.so"
    assert libraries._load("generic", path) is not None
    monkeypatch.setattr(libraries, "_ffi_version", lambda: 0)
    assert libraries._load("generic", path) is None
    assert "it was built for a newer version of jax than " in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_a_kernel_compiled_with_later_headers_is_left_out(tmp_path):
    headers, library = tmp_path / "include", tmp_path / "_generic.so"
    shutil.copytree(jax.ffi.include_dir(), headers)
    interface = headers / "xla/ffi/api/c_api.h"
    interface.write_text(re.sub(r"(XLA_FFI_API_MINOR) \d+", r"\1 99", interface.read_text()))
    options = ["-O0", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-isystem", headers]
    subprocess.run(["c++", *options, FOLDER / "generic.cc", "-o", library], check=True)
    assert libraries._load("generic", library) is None


@pytest.mark.parametrize("best", ["avx512bf16", "generic"])
@pytest.mark.usefixtures("new_choice")
def test_training_says_which_form_this_cpu_lacks(monkeypatch, caplog, root, best):
    monkeypatch.setattr(libraries, "cpu_flags", lambda: INSTRUCTION_SETS[best])
    monkeypatch.setattr(libraries, "libraries", lambda: ())
    assert api.default_implementation("float32", 100) == "custom_vjp"
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert f"this CPU is faster with the {best} form of the LSTM kernel, which is not installed" in warning
    assert warning.endswith(f"pip install --editable {root}")


@contextlib.contextmanager
def recorded_calls():
    """Yields a list of the custom calls traced meanwhile: (target, types of results and of arguments, attributes)."""
    calls, ffi_call = [], jax.ffi.ffi_call

    def record(target, results, **options):
        def call(*args, **attributes):
            types = [jax.ShapeDtypeStruct(arg.shape, arg.dtype) for arg in args]
            calls.append((target, [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results], types, attributes))
            return ffi_call(target, results, **options)(*args, **attributes)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.ffi, "ffi_call", record)
        yield calls


def calls_of(library, dtype, one_hot):
    """The forward and backward call of a layer, and two of generation, with logits and without."""
    weights, x, carry = make_inputs("odd", one_hot)
    (inputs, _), hidden = weights.w_ih.shape, weights.w_hh.shape[0]
    layers = [weights, LSTMWeights(weights.w_hh, *weights[1:])]

    def train(weights, x, carry):
        outputs, pull = jax.vjp(lambda w: native.lstm_native(w, x, carry, jnp.dtype(dtype), library), weights)
        return pull(outputs)

    def generate(with_logits):
        packed = generation.pack(layers, jnp.zeros((hidden, inputs)), jnp.zeros(inputs), dtype, library)
        keys = jax.random.split(jax.random.key(0), 3)
        settings = make_settings(SampleConfig(), 3)
        states = [LSTMCarry(jnp.zeros((3, hidden)), jnp.zeros((3, hidden)))] * 2
        given, position = jnp.zeros((3, 4), jnp.int32), jnp.int32(0)
        options = {"vocab_size": inputs, "with_logits": with_logits}
        return generation.run_steps(library, dtype, packed, states, given, keys, position, settings, **options)

    with recorded_calls() as calls:
        if dtype in library.dtypes:
            jax.eval_shape(train, weights, x, carry)
        for with_logits in (False, True):
            jax.eval_shape(functools.partial(generate, with_logits))
    return calls


def with_another_type(types):
    """Yields the types with the shape or the dtype of one of them changed."""
    for n, one in enumerate(types):
        other_dtype = {"float32": "bfloat16", "int32": "int16", "uint32": "int32"}.get(one.dtype.name, "float32")
        other_shape = (*one.shape[:-1], one.shape[-1] + 1) if one.shape else (1,)
        for other in (jax.ShapeDtypeStruct(one.shape, other_dtype), jax.ShapeDtypeStruct(other_shape, one.dtype)):
            yield [*types[:n], other, *types[n + 1 :]]


def forms():
    """The compiled forms with formats; the default tier runs all formats of the best form, and one of the plainest."""
    formats = [("float32", False), ("float32", True), ("bfloat16", False), ("int8", False)]
    for library, format_ in itertools.product(libraries.libraries(), formats):
        is_quick = library is libraries.libraries()[0] or (library.instructions, format_) == ("generic", formats[0])
        name = f"{library.instructions}-{format_[0]}-{'ids' if format_[1] else 'vectors'}"
        yield pytest.param(library, *format_, marks=[] if is_quick else pytest.mark.slow, id=name)


@pytest.mark.parametrize(("library", "dtype", "one_hot"), [*forms()])
def test_the_kernel_itself_refuses_what_it_would_misread(library, dtype, one_hot):
    def run(target, results, types, attributes):
        zeros = [np.zeros(one.shape, one.dtype) for one in types]
        jax.block_until_ready(jax.ffi.ffi_call(target, results)(*zeros, **attributes))

    for target, results, types, attributes in calls_of(library, dtype, one_hot):
        run(target, results, types, attributes)
        wrong = [(results, args) for args in with_another_type(types)]
        wrong += [(others, types) for others in with_another_type(results)]
        for others, args in wrong:
            with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: charjax's LSTM kernel: "):
                run(target, others, args, attributes)


@pytest.mark.parametrize("one_hot", [False, True])
def test_threads_divide_the_rows(monkeypatch, one_hot):
    inputs = make_inputs("tiles", one_hot)
    outputs, _, single = gradients("native", "float32", *inputs)
    monkeypatch.setattr(native, "threads_of_a_call", lambda: 3)
    outputs_shared, _, shared = gradients("native", "float32", *inputs)
    # A row's numbers do not depend on the thread that computes it; sums over rows are added in another order.
    for one, other in zip(outputs_shared, outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(shared, single, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("new_choice")
def test_native_is_the_default_where_packing_pays():
    assert api.default_implementation("float32", 100) == "native"
    assert api.default_implementation("float32", 1) == "custom_vjp"


@pytest.mark.usefixtures("new_choice")
def test_a_machine_without_the_kernel_has_another_default(monkeypatch):
    monkeypatch.setattr(libraries, "libraries", lambda: ())
    assert api.default_implementation("float32", 100) == "custom_vjp"
    with pytest.raises(NotImplementedError, match="'native' is not available for bfloat16"):
        lstm(*make_inputs(), implementation="native", dtype="bfloat16")
